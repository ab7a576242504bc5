"""The entries of a comparison over its seeds: means, intervals, and paired differences to one of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from florist.aggregation.efficiency import communication_efficiency
from florist.comparison.intervals import FEWEST_VALUES, Estimate, estimate
from florist.comparison.results import CellResult

FAVOURITE = "florist"
"""The entry that others are compared with, where there is one of this name."""


class Verdict(Enum):
    """What the paired differences between an entry and the reference say."""

    BETTER = "better"
    WORSE = "worse"
    TIED = "tied"


@dataclass(frozen=True, slots=True)
class Measured:
    """One metric of an entry.

    Attributes:
        value: the mean over the seeds of the entry.
        difference: the mean difference to the reference, over the seeds that both have; None for the reference itself,
            and if they have no seed in common.
        lower_is_better: whether a smaller value is the better one; None if nobody knows.
    """

    value: Estimate
    difference: Estimate | None
    lower_is_better: bool | None

    @property
    def verdict(self) -> Verdict | None:
        """What the interval of the difference says; None if there is none, of too few seeds, or without a direction."""
        if self.difference is None or self.difference.count < FEWEST_VALUES:
            return None
        sign = self.difference.sign
        if sign is None or self.lower_is_better is None:
            return None
        if sign == 0:
            return Verdict.TIED
        return Verdict.BETTER if (sign < 0) == self.lower_is_better else Verdict.WORSE


@dataclass(frozen=True, slots=True)
class Line:
    """The summary of an entry, without its failed runs.

    Attributes:
        name: the name of the entry.
        method: its aggregation method.
        seeds: the seeds of the runs that count.
        failures: why the other runs failed, by seed.
        lost_rounds: how many rounds changed nothing, for want of usable updates, in the runs that count.
        metrics: the metrics on the test examples.
        validation: the metrics of the last round on the validation examples, to choose by; empty if there are none.
        total_rank: the total rank of a broadcast, as the mean over rounds and seeds; None if the method has no ranks.
        last_total_rank: the total rank of the last broadcast, as the mean over seeds.
        efficiency: the communication efficiency of the FLoRIST paper; see `efficiency.communication_efficiency`.
        upload_bytes: what all clients send in a run; a mean over seeds, like all that follow.
        download_bytes: what all clients receive in a run.
        client_upload_bytes: what a client sends in a round.
        client_download_bytes: what a client receives in a round.
        server_seconds: how long the server aggregates in a run.
        client_seconds: how long all clients together train in a run.
    """

    name: str
    method: str
    seeds: tuple[int, ...]
    failures: Mapping[int, str]
    lost_rounds: int
    metrics: Mapping[str, Measured]
    validation: Mapping[str, Measured]
    total_rank: float | None
    last_total_rank: float | None
    efficiency: float | None
    upload_bytes: float | None
    download_bytes: float | None
    client_upload_bytes: float | None
    client_download_bytes: float | None
    server_seconds: float | None
    client_seconds: float | None


def reference(entries: Sequence[str]) -> str:
    """The entry that the others are compared with: florist where it takes part, else the first."""
    return FAVOURITE if FAVOURITE in entries else entries[0]


def summarise(results: Sequence[CellResult]) -> list[Line]:
    """Summarise every entry, in the order of the results.

    Differences are paired: runs of one seed have the same examples, participants and batches, so that the difference
    within a seed varies much less than the runs do from seed to seed. Their interval is that of the mean difference.

    Args:
        results: the results of all cells.
    """
    by_entry: dict[str, list[CellResult]] = {}
    for result in results:
        by_entry.setdefault(result.cell.entry.name, []).append(result)
    compared_with = reference(list(by_entry))
    return [
        _line(name, some, by_entry[compared_with] if name != compared_with else []) for name, some in by_entry.items()
    ]


def _line(name: str, results: Sequence[CellResult], compared_with: Sequence[CellResult]) -> Line:
    played = [result for result in results if result.failure is None]
    others = [result for result in compared_with if result.failure is None]
    total_rank = _mean(played, lambda result: result.rank_of_a_round)
    return Line(
        name=name,
        method=results[0].method,
        seeds=tuple(result.cell.seed for result in played),
        failures={result.cell.seed: result.failure for result in results if result.failure is not None},
        lost_rounds=sum(result.lost_rounds for result in played),
        metrics=_measured(played, others, lambda result: result.metrics),
        validation=_measured(played, others, lambda result: result.validation),
        total_rank=total_rank,
        last_total_rank=_mean(played, lambda result: result.last_rank),
        efficiency=communication_efficiency(total_rank or 0.0, results[0].sent),
        upload_bytes=_mean(played, lambda result: result.upload_bytes),
        download_bytes=_mean(played, lambda result: result.download_bytes),
        client_upload_bytes=_mean(played, lambda result: result.upload_bytes / result.parts),
        client_download_bytes=_mean(played, lambda result: result.download_bytes / result.parts),
        server_seconds=_mean(played, lambda result: result.server_seconds),
        client_seconds=_mean(played, lambda result: result.client_seconds),
    )


def _measured(
    results: Sequence[CellResult],
    others: Sequence[CellResult],
    metrics: Callable[[CellResult], Mapping[str, float]],
) -> dict[str, Measured]:
    paired = {other.cell.seed: metrics(other) for other in others}
    measured: dict[str, Measured] = {}
    for name in metrics(results[0]) if results else ():
        value = estimate([metrics(result)[name] for result in results])
        difference = estimate(
            [
                metrics(result)[name] - paired[result.cell.seed][name]
                for result in results
                if name in paired.get(result.cell.seed, {})
            ]
        )
        if value is not None:
            measured[name] = Measured(value, difference, _direction(name, (*results, *others)))
    return measured


def _direction(metric: str, results: Sequence[CellResult]) -> bool | None:
    """Whether a smaller value is the better one; None if a run does not know or two contradict each other."""
    said = {result.lower_is_better.get(metric) for result in results}
    return said.pop() if len(said) == 1 else None


def _mean(results: Sequence[CellResult], value: Callable[[CellResult], float | None]) -> float | None:
    found = estimate([each for result in results if (each := value(result)) is not None])
    return found.mean if found is not None else None
