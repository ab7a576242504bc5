"""What a tracker is told of a round: numbers by name, the same for every tracker."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from florist.federation.records import FinalTest, RoundRecord

_LONGEST = 100


@dataclass(frozen=True, slots=True)
class Totals:
    """What all clients sent and received in the rounds so far, in bytes."""

    upload_bytes: int = 0
    download_bytes: int = 0

    def followed_by(self, record: RoundRecord) -> "Totals":
        """The totals after one more round."""
        return Totals(self.upload_bytes + record.upload_bytes, self.download_bytes + record.download_bytes)


def values_before(initial: Mapping[str, float]) -> dict[str, float]:
    """What is known before the first round: the metrics of the base model."""
    return {f"eval/{name}": float(value) for name, value in initial.items()}


def values_of(record: RoundRecord, totals: Totals, *, clients: bool = True) -> dict[str, float]:
    """The values of a round.

    Args:
        record: of the round.
        totals: after the round.
        clients: whether the loss of every client is one of them.
    """
    values: dict[str, float] = {
        **values_before(record.metrics),
        "round/clients": len(record.clients),
        "round/dropped": len(record.dropped),
        "round/total_rank": record.total_rank,
        "round/input_rank": record.input_rank,
        "round/cumulative_rank": record.cumulative_rank,
        "round/relative_error": record.relative_error,
        "round/codec_error": record.codec_error,
        "round/held_back": record.held_back,
        "bytes/upload": record.upload_bytes,
        "bytes/download": record.download_bytes,
        "bytes/broadcast": record.broadcast_bytes,
        "bytes/upload_so_far": totals.upload_bytes,
        "bytes/download_so_far": totals.download_bytes,
        **{f"seconds/{phase}": seconds for phase, seconds in record.seconds.items()},
    }
    if record.epsilon is not None:
        values["privacy/epsilon"] = record.epsilon
    if clients and record.privacy is None:  # private rounds do not tell the losses
        values |= {f"client_loss/{_label(client.client_id)}": client.loss for client in record.clients}
    return {name: float(value) for name, value in values.items()}


def values_of_test(test: FinalTest) -> dict[str, float]:
    """The metrics of the final adapter on the test examples."""
    return {f"test/{name}": float(value) for name, value in test.metrics.items()}


def _label(client_id: str) -> str:
    """A client's name as every tracker takes it: a client over Flower may call itself anything printable."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", client_id)[:_LONGEST]
    if plain == client_id and plain.strip("."):
        return plain
    # Two names must not become one.
    return f"{plain.strip('.') or 'client'}-{hashlib.sha256(client_id.encode()).hexdigest()[:6]}"
