"""How a round record is made: from the outcome of the round and from what the engine measured."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from florist.federation.closed_round import ClosedRound
from florist.federation.records import ClientRecord, RoundRecord
from florist.rounds import ModuleCertificate


@dataclass(frozen=True, slots=True)
class LocalWork:
    """What an engine measured of one client's part in a round.

    Attributes:
        download_bytes: what was sent to the client before it trained.
        loss: the mean training loss.
        seconds: how long it trained.
    """

    download_bytes: int
    loss: float
    seconds: float


def round_record(
    closed: ClosedRound,
    work: Mapping[str, LocalWork],
    metrics: Mapping[str, float],
    seconds: Mapping[str, float],
    client_metrics: Mapping[str, Mapping[str, float]] | None = None,
) -> RoundRecord:
    """The record of a closed round. It counts what was sent to every client, whether its update counts or not.

    Args:
        closed: the outcome of the round.
        work: what was measured of every client that was asked, by client id.
        metrics: what the global adapter measured after the round; empty where it was not evaluated.
        seconds: the duration of every phase.
        client_metrics: the same metrics on the held-out examples of each client, where they were measured.
    """
    certificate = closed.broadcast.certificate if closed.broadcast else None
    sent = {client_id: delivery.nbytes for client_id, delivery in closed.deliveries.items()}
    geometry = closed.changes.geometry
    norms = dict(zip(closed.ranks, geometry.norms, strict=False))
    clients = tuple(
        ClientRecord(
            client_id=update.client_id,
            rank=closed.ranks[update.client_id],
            num_examples=update.num_examples,
            upload_bytes=closed.upload_bytes[update.client_id],
            download_bytes=work[update.client_id].download_bytes + sent.get(update.client_id, 0),
            loss=work[update.client_id].loss,
            seconds=work[update.client_id].seconds,
            held_back=update.held_back,
            update_norm=norms.get(update.client_id),
            weight=closed.weights.get(update.client_id),
        )
        for update in closed.counted
    )
    counted = {client.client_id for client in clients}
    lost = sum(done.download_bytes for client_id, done in work.items() if client_id not in counted)
    return RoundRecord(
        round=closed.state.round_number,
        aggregated=certificate is not None,
        metrics=metrics,
        total_rank=certificate.total_rank if certificate else 0,
        input_rank=closed.stack_rank if certificate else 0,
        cumulative_rank=closed.state.global_adapter.total_rank,
        relative_error=certificate.relative_error if certificate else 0.0,
        ranks={name: module.rank for name, module in certificate.modules.items()} if certificate else {},
        upload_bytes=sum(client.upload_bytes for client in clients),
        download_bytes=sum(client.download_bytes for client in clients) + lost,
        broadcast_bytes=certificate.bytes_out if certificate else 0,
        stack_bytes=closed.stack_bytes if certificate else 0,
        clients=clients,
        dropped=closed.dropped,
        seconds=seconds,
        codec_error=certificate.codec_error if certificate else 0.0,
        held_back=closed.state.owed.norm,
        client_metrics=client_metrics or {},
        lost={name: _lost(module) for name, module in certificate.modules.items()} if certificate else {},
        cosines=geometry.cosines,
        clipped=closed.clipped,
    )


def first_claims(records: Iterable[RoundRecord]) -> Mapping[str, int]:
    """How many examples each client claimed when it first counted, by client id."""
    claims: dict[str, int] = {}
    for record in records:
        for client in record.clients:
            claims.setdefault(client.client_id, client.num_examples)
    return claims


def _lost(module: ModuleCertificate) -> float:
    """The part of the error that is not held back. The two are orthogonal: what is let go was cut off the other."""
    return max(0.0, module.error**2 - module.held_back**2) ** 0.5
