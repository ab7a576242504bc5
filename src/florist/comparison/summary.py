"""Entries over seeds: means, intervals, and paired differences to one of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from florist.comparison.intervals import Estimate, estimate
from florist.comparison.results import CellResult
from florist.evaluation import lower_is_better

FAVOURITE = "florist"
"""The entry that others are compared with, where there is one of this name."""


class Verdict(Enum):
    """What the paired differences of an entry to the reference say."""

    BETTER = "better"
    WORSE = "worse"
    TIED = "tied"


@dataclass(frozen=True, slots=True)
class Measured:
    """One metric of an entry.

    Attributes:
        value: over its seeds.
        difference: to the reference, over the seeds that both have; None for the reference itself and where no seed
            is common.
        verdict: whether the interval of the difference lies on one side of 0; None where there is no interval.
    """

    value: Estimate
    difference: Estimate | None
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class Row:
    """An entry of the table; failed runs do not go in.

    Attributes:
        name: of the entry.
        method: its aggregation method.
        seeds: of the runs that count.
        failures: the reasons of those that do not, by seed.
        lost_rounds: rounds of the runs that count that changed nothing, for want of usable updates.
        metrics: on the test records.
        validation: of the last round on the validation records, where there are some: to choose by.
        total_rank: of a broadcast, mean over rounds and seeds; None where the method has none.
        last_total_rank: of the last broadcast, mean over seeds.
        efficiency: 1 / total_rank, the communication efficiency of the FLoRIST paper (arXiv:2506.09199).
        upload_bytes: of a run, from all clients; mean over seeds, as are all that follow.
        download_bytes: of a run, to all clients.
        client_upload_bytes: of a client in a round.
        client_download_bytes: of a client in a round.
        server_seconds: of a run, aggregating.
        client_seconds: of a run, training, all clients together.
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


def summarise(results: Sequence[CellResult]) -> list[Row]:
    """A row for every entry, in the order of the results.

    Differences are paired: runs of one seed have the same records, participants and batches, so that the difference
    within a seed varies much less than the runs do from seed to seed. Their interval is that of the mean difference.

    Args:
        results: of all cells.
    """
    by_entry: dict[str, list[CellResult]] = {}
    for result in results:
        by_entry.setdefault(result.cell.entry.name, []).append(result)
    compared_with = reference(list(by_entry))
    return [
        _row(name, some, by_entry[compared_with] if name != compared_with else []) for name, some in by_entry.items()
    ]


def _row(name: str, results: Sequence[CellResult], compared_with: Sequence[CellResult]) -> Row:
    played = [result for result in results if result.failure is None]
    others = [result for result in compared_with if result.failure is None]
    total_rank = _mean(played, lambda result: result.rank_of_a_round)
    return Row(
        name=name,
        method=results[0].method,
        seeds=tuple(result.cell.seed for result in played),
        failures={result.cell.seed: result.failure for result in results if result.failure is not None},
        lost_rounds=sum(result.lost_rounds for result in played),
        metrics=_measured(played, others, lambda result: result.metrics),
        validation=_measured(played, others, lambda result: result.validation),
        total_rank=total_rank,
        last_total_rank=_mean(played, lambda result: result.last_rank),
        efficiency=1 / total_rank if total_rank else None,
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
            measured[name] = Measured(value, difference, _verdict(name, difference))
    return measured


def _verdict(metric: str, difference: Estimate | None) -> Verdict | None:
    sign = difference.sign if difference is not None else None
    if sign is None:
        return None
    if sign == 0:
        return Verdict.TIED
    return Verdict.BETTER if (sign < 0) == lower_is_better(metric) else Verdict.WORSE


def _mean(results: Sequence[CellResult], value: Callable[[CellResult], float | None]) -> float | None:
    found = estimate([each for result in results if (each := value(result)) is not None])
    return found.mean if found is not None else None
