"""How unlike the clients fare: the mean, the worst and the spread of a metric over their own held-out examples."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from florist.federation.records import RoundRecord


@dataclass(frozen=True, slots=True)
class Spread:
    """One metric over the clients, every client with the same weight.

    Attributes:
        metric: the name of the metric.
        mean: the mean over the clients.
        worst: the worst value; NaN where nobody knows which way the metric gets better.
        worst_client: whose it is; empty there.
        lowest: the smallest value.
        highest: the largest value.
        deviation: the standard deviation over the clients, who are all there are: divided by their number.
    """

    metric: str
    mean: float
    worst: float
    worst_client: str
    lowest: float
    highest: float
    deviation: float

    @property
    def text(self) -> str:
        """Mean, worst and spread in words; without the worst where nobody knows which it is."""
        worst = f"worst {self.worst:.3f} ({self.worst_client}), " if self.worst_client else ""
        return (
            f"mean {self.mean:.3f}, {worst}from {self.lowest:.3f} to {self.highest:.3f}, deviation {self.deviation:.3f}"
        )


def spreads(record: RoundRecord, lower_is_better: Mapping[str, bool]) -> tuple[Spread, ...]:
    """Every metric of a round over its clients, in the order of the first client's metrics.

    Args:
        record: a round; one without metrics of clients gives nothing.
        lower_is_better: whether a smaller value is the better one, by metric, as far as it is known.
    """
    by_client = record.client_metrics
    names = list(dict.fromkeys(name for own in by_client.values() for name in own))
    found: list[Spread] = []
    for name in names:
        values = {client_id: own[name] for client_id, own in by_client.items() if name in own}
        mean = math.fsum(values.values()) / len(values)
        worst, whose = math.nan, ""
        if name in lower_is_better:
            # What is not a number is the worst of all.
            sign = 1 if lower_is_better[name] else -1
            whose = max(values, key=lambda each, own=values, sign=sign: _badness(own[each], sign))
            worst = values[whose]
        # The square of a perplexity may be too large for a float.
        deviation = math.hypot(*(value - mean for value in values.values())) / math.sqrt(len(values))
        found.append(Spread(name, mean, worst, whose, min(values.values()), max(values.values()), deviation))
    return tuple(found)


def last_evaluated(records: Sequence[RoundRecord]) -> RoundRecord | None:
    """The last round whose metrics were measured on the clients' own examples."""
    return next((record for record in reversed(records) if record.client_metrics), None)


def _badness(value: float, sign: int) -> float:
    return math.inf if math.isnan(value) else sign * value
