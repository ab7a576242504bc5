"""The results of the cells of a comparison, read from their runs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from florist.comparison.directory import ComparisonDirectory
from florist.comparison.planning import Cell
from florist.config.methods import make_aggregator
from florist.evaluation import known_directions
from florist.federation.history import RunDirectory
from florist.federation.records import RoundRecord
from florist.rounds import Trained


@dataclass(frozen=True, slots=True)
class CellResult:
    """The result of one run of a comparison.

    Attributes:
        cell: the cell that was run.
        method: the name of the aggregation method.
        sent: what the server sends of the factors.
        records: the round records, as many as rounds were played.
        metrics: the metrics on the test examples: those of the last round, or those of the final adapter if the rounds
            were measured on validation examples.
        validation: the metrics of the last round on the validation examples; empty if there are none.
        lower_is_better: whether a smaller value is the better one, by the name of the metric, as far as it is known.
        failure: why the run does not count; None if it does.
    """

    cell: Cell
    method: str
    sent: Trained
    records: tuple[RoundRecord, ...]
    metrics: Mapping[str, float]
    validation: Mapping[str, float]
    lower_is_better: Mapping[str, bool]
    failure: str | None

    @property
    def lost_rounds(self) -> int:
        """The number of rounds with too few usable updates, which changed nothing."""
        return sum(not record.aggregated for record in self.records)

    @property
    def rank_of_a_round(self) -> float | None:
        """The mean total rank of the broadcasts; None if the method has no ranks."""
        ranks = _ranks(self.records)
        return fmean(ranks) if ranks else None

    @property
    def last_rank(self) -> float | None:
        """The total rank of the last broadcast; None if the method has no ranks."""
        ranks = _ranks(self.records)
        return float(ranks[-1]) if ranks else None

    @property
    def upload_bytes(self) -> float:
        """What all clients sent in all rounds."""
        return float(sum(record.upload_bytes for record in self.records))

    @property
    def download_bytes(self) -> float:
        """What all clients received in all rounds, catch-up included."""
        return float(sum(record.download_bytes for record in self.records))

    @property
    def parts(self) -> int:
        """How often a client was asked, in all rounds together."""
        return sum(len(record.clients) + len(record.dropped) for record in self.records)

    @property
    def server_seconds(self) -> float:
        """How long the server checked and aggregated, in all rounds together."""
        return sum(record.seconds["aggregate"] for record in self.records)

    @property
    def client_seconds(self) -> float:
        """How long the clients trained, all of them in all rounds together."""
        return sum(client.seconds for record in self.records for client in record.clients)


def read_result(directory: ComparisonDirectory, cell: Cell, failure: str | None = None) -> CellResult:
    """Read the result of one cell.

    A run that came to its end does not count either if it diverged: if its last round changed nothing, for want of
    usable updates, or a metric after it is not finite.

    Args:
        directory: the directory of the comparison.
        cell: the cell.
        failure: why its run broke off, if it did.

    Raises:
        DamagedRunError: the run cannot be read.
    """
    config = directory.config(cell)
    run = directory.begun(cell)
    records = tuple(run.records()) if run is not None else ()
    best = records[-1].best_round if records and config.federation.best_round else None
    in_rounds = records[best - 1 if best is not None else -1].metrics if records else {}
    tested = run.tested if run is not None else None
    at_the_end = tested.metrics if tested is not None else {}
    apart = config.has_validation and config.evaluation.split != "test"
    metrics = at_the_end if apart else {**in_rounds, **at_the_end}
    reason = failure
    if reason is None and best is None and len(records) == config.federation.rounds:
        reason = _last_round_lost(records)
    if reason is None:
        reason = _not_finite(metrics) if directory.is_over(cell) else _not_over(directory, run)
    return CellResult(
        cell=cell,
        method=config.aggregation.method,
        sent=make_aggregator(config.aggregation, largest_rank=1).work.broadcast,
        records=records,
        metrics=metrics,
        validation=in_rounds if apart else {},
        lower_is_better={**known_directions(in_rounds), **(tested.lower_is_better if tested is not None else {})},
        failure=reason,
    )


def _not_over(directory: ComparisonDirectory, run: RunDirectory | None) -> str:
    damage = run.result.damage() if run is not None else None
    if damage is None:
        return "has not come to its end"
    return f"{damage}; florist compare --resume {directory.path} writes the end of the run again, from its state"


def _last_round_lost(records: tuple[RoundRecord, ...]) -> str | None:
    if records[-1].aggregated:
        return None
    drops = "; ".join(f"{drop.client_id}: {drop.reason}" for drop in records[-1].dropped)
    return f"round {records[-1].round}, the last, had too few usable updates ({drops})"


def _not_finite(metrics: Mapping[str, float]) -> str | None:
    infinite = [name for name, value in metrics.items() if not math.isfinite(value)]
    return f"{', '.join(infinite)}: not a finite number in the end" if infinite else None


def _ranks(records: tuple[RoundRecord, ...]) -> list[int]:
    return [record.total_rank for record in records if record.aggregated and record.ranks]
