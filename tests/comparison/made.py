"""Records and results of runs that nobody played."""

from collections.abc import Mapping

from florist.comparison.planning import Cell, Entry
from florist.comparison.results import CellResult
from florist.evaluation import known_directions
from florist.federation.records import ClientRecord, Drop, RoundRecord
from florist.rounds import Trained


def a_round(
    number: int,
    metrics: Mapping[str, float],
    *,
    total_rank: int = 10,
    aggregated: bool = True,
    with_ranks: bool = True,
    clients: int = 2,
    dropped: int = 0,
) -> RoundRecord:
    """A round whose clients upload 100 bytes each, download 50 and train for 3 s."""
    return RoundRecord(
        round=number,
        aggregated=aggregated,
        metrics=metrics,
        total_rank=total_rank if aggregated and with_ranks else 0,
        input_rank=40,
        cumulative_rank=total_rank,
        relative_error=0.1,
        ranks={"layer": total_rank} if aggregated and with_ranks else {},
        upload_bytes=100 * clients,
        download_bytes=50 * (clients + dropped),
        broadcast_bytes=50,
        stack_bytes=200,
        clients=tuple(ClientRecord(f"client_{k}", 4, 10, 100, 50, 1.0, 3.0) for k in range(clients)),
        dropped=tuple(Drop(f"client_{clients + k}", "layer holds NaN or inf") for k in range(dropped)),
        seconds={"train": 6.0, "aggregate": 0.5, "evaluate": 1.0, "total": 7.5},
    )


def result(
    entry: str,
    seed: int,
    metrics: Mapping[str, float],
    *,
    records: tuple[RoundRecord, ...] = (),
    failure: str | None = None,
    validation: Mapping[str, float] | None = None,
    sent: Trained = Trained.FACTORS,
    lower_is_better: Mapping[str, bool] | None = None,
) -> CellResult:
    """The result of one run of two rounds."""
    return CellResult(
        cell=Cell(Entry(entry), seed),
        method=entry,
        sent=sent,
        records=records or (a_round(1, metrics), a_round(2, metrics, total_rank=20)),
        metrics=metrics,
        validation=validation or {},
        lower_is_better={**known_directions(metrics), **(lower_is_better or {})},
        failure=failure,
    )
