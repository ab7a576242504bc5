"""Which round is the best, and when more rounds do not help: both from the round records alone.

A run that was interrupted therefore chooses and stops as one that was not.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from florist.federation.records import RoundRecord


@dataclass(frozen=True, slots=True)
class RoundChoice:
    """How the rounds of a run are judged by one metric of their records.

    A round counts if it was evaluated, the metric is a number, and some round up to it changed the global adapter.

    Attributes:
        metric: the name of the metric.
        lower_is_better: whether a smaller value is the better one.
        patience: after how many evaluations in a row without an improvement the rounds stop; None for never.
        min_delta: by how much a value must be better than the last improvement to be one. It says when to stop. The
            best round is the one with the best value, by whatever margin.
        keep_best: whether the final adapter is that of the best round, which is then kept.
    """

    metric: str
    lower_is_better: bool
    patience: int | None = None
    min_delta: float = 0.0
    keep_best: bool = False

    def best(self, records: Sequence[RoundRecord], among: Collection[int | None] | None = None) -> int | None:
        """The number of the round with the best value, the first of equals; None where no round counts.

        Args:
            records: the records of all rounds so far.
            among: the numbers of the rounds to choose from; None for all.
        """
        values = [(number, value) for number, value in self._values(records) if among is None or number in among]
        if not values:
            return None
        best = (min if self.lower_is_better else max)(value for _, value in values)
        return next(number for number, value in values if value == best)

    def waited(self, records: Sequence[RoundRecord]) -> int:
        """How many evaluations came after the last improvement."""
        reference, waited = math.inf, 0
        for _, value in self._values(records):
            cost = value if self.lower_is_better else -value
            if cost < reference - self.min_delta:
                reference, waited = cost, 0
            else:
                waited += 1
        return waited

    def stops(self, records: Sequence[RoundRecord]) -> bool:
        """Whether the rounds stop after the last of these records."""
        return self.patience is not None and self.waited(records) >= self.patience

    def judged(self, records: Sequence[RoundRecord], latest: RoundRecord, rounds: int) -> RoundRecord:
        """The record of a round with what it means for the choice among the rounds.

        Args:
            records: the records of the rounds before.
            latest: the record of the round.
            rounds: how many rounds are played where they do not stop early.
        """
        so_far = [*records, latest]
        # Where the metric was changed, a better round may be one that is not kept any more.
        among = {records[-1].best_round, latest.round} if records and self.keep_best else None
        stopped = len(so_far) < rounds and self.stops(so_far)
        return replace(latest, best_round=self.best(so_far, among), stopped=stopped)

    def _values(self, records: Sequence[RoundRecord]) -> list[tuple[int, float]]:
        changed, found = False, list[tuple[int, float]]()
        for record in records:
            changed = changed or record.aggregated
            value = record.metrics.get(self.metric, math.nan)
            if changed and math.isfinite(value):
                found.append((record.round, value))
        return found
