"""The round state machine: who takes part, what each lacks, which replies count, and the state after.

It moves a `ServerState` from one round to the next and knows neither models nor networks: the in-process engine and
any other engine drive the same steps.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from florist.aggregation import lossless_sum
from florist.factors import AdapterState
from florist.rounds import (
    NOTHING,
    Aggregator,
    Broadcast,
    ClientRecord,
    ClientUpdate,
    Drop,
    FullParameters,
    RoundRecord,
    ServerState,
    full_bytes,
)
from florist.seeding import generator


@dataclass(frozen=True, slots=True, eq=False)
class Download:
    """What a client lacks before it can take part.

    Attributes:
        adapter: the sum of the broadcasts that it missed, to be added to the global adapter that it holds.
        full_parameters: current values of the parameters that travel whole; empty where it has them.
    """

    adapter: AdapterState
    full_parameters: FullParameters

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.adapter.nbytes + full_bytes(self.full_parameters)


@dataclass(frozen=True, slots=True, eq=False)
class ClosedRound:
    """The outcome of a round.

    Attributes:
        state: to start the next round from.
        broadcast: what to send; None where too few updates could be used and nothing changed.
        counted: the updates that went in.
        dropped: the updates that were refused, and why.
    """

    state: ServerState
    broadcast: Broadcast | None
    counted: tuple[ClientUpdate, ...]
    dropped: tuple[Drop, ...]


@dataclass(frozen=True, slots=True)
class Federation:
    """The rules of a federation, the same in every round.

    Args:
        client_ids: every client that may be asked.
        aggregator: the method.
        shapes: (out_features, in_features) of every module that may be trained; anything else is refused.
        seed: of the run.
        fraction: of the clients asked in each round, rounded up (FedAvg's C, arXiv:1602.05629).
        min_replies: usable updates that a round needs; by default half of the asked clients, rounded up.
    """

    client_ids: tuple[str, ...]
    aggregator: Aggregator
    shapes: Mapping[str, tuple[int, int]]
    seed: int
    fraction: float = 1.0
    min_replies: int | None = None

    @property
    def clients_per_round(self) -> int:
        """How many clients each round asks."""
        # 0.1 * 30 is 3.0000000000000004: the ceiling must not ask a fourth client for that.
        return max(1, math.ceil(round(self.fraction * len(self.client_ids), 9)))

    @property
    def required_replies(self) -> int:
        """How many usable updates a round needs."""
        return self.min_replies if self.min_replies is not None else math.ceil(self.clients_per_round / 2)

    def participants(self, round_number: int) -> tuple[str, ...]:
        """The clients to ask in a round, sorted: drawn from the seed and the round number alone."""
        ordered = sorted(self.client_ids)
        draw = torch.randperm(len(ordered), generator=generator(self.seed, "participants", round_number))
        return tuple(sorted(ordered[i] for i in draw[: self.clients_per_round].tolist()))

    def download(self, state: ServerState, client_id: str) -> Download:
        """What a client lacks: every broadcast since it last held the global adapter, as one adapter.

        Sums of several broadcasts are decomposed again without loss, so that a long absence does not cost the sum
        of all that was sent meanwhile.
        """
        held = state.holds.get(client_id, 0)
        missed = [broadcast for number, broadcast in sorted(state.broadcasts.items()) if number > held]
        if client_id in state.holds and not missed:
            return Download(AdapterState.of({}), NOTHING)
        return Download(missed[0] if len(missed) == 1 else lossless_sum(missed), state.full_parameters)

    def close_round(self, state: ServerState, updates: Sequence[ClientUpdate]) -> ClosedRound:
        """Check the replies, aggregate those that can be used, and move the state on by one round.

        A round with too few usable updates keeps the global adapter as it was. The clients whose updates count hold
        the new global adapter afterwards: they get the round's broadcast.
        """
        round_number = state.round_number + 1
        counted: dict[str, ClientUpdate] = {}
        dropped: list[Drop] = []
        for update in updates:
            reason = self._refusal(update, state, counted)
            if reason is None:
                counted[update.client_id] = update
            else:
                dropped.append(Drop(update.client_id, reason))
        usable = tuple(counted[client_id] for client_id in sorted(counted))
        if len(usable) < self.required_replies:
            unchanged = ServerState(
                round_number, state.cumulative, state.full_parameters, state.broadcasts, state.holds
            )
            return ClosedRound(unchanged, None, usable, tuple(dropped))
        broadcast = self.aggregator(usable)
        moved = ServerState(
            round_number=round_number,
            cumulative=lossless_sum([state.cumulative, broadcast.shared]),
            full_parameters=broadcast.full_parameters,
            broadcasts={**state.broadcasts, round_number: broadcast.shared},
            holds={**state.holds, **dict.fromkeys(counted, round_number)},
        )
        return ClosedRound(moved, broadcast, usable, tuple(dropped))

    def _refusal(self, update: ClientUpdate, state: ServerState, counted: Mapping[str, ClientUpdate]) -> str | None:
        """Why an update cannot count; None where it can. Reads every factor once."""
        round_number = state.round_number + 1
        if update.client_id not in self.client_ids:
            return "not a client of this federation"
        if update.round_number != round_number:
            return f"expected an update of round {round_number}, got one of round {update.round_number}"
        if update.client_id in counted:
            return "a second update in one round; the first counts"
        if update.num_examples <= 0:
            return f"expected a positive number of examples, got {update.num_examples}"
        for name, spec in update.adapter.specs.items():
            if name not in self.shapes:
                return f"{name} is not a module that this federation trains"
            if spec.shape != self.shapes[name]:
                return f"{name}: expected the shape {self.shapes[name]}, got {spec.shape}"
        for name, factor in update.adapter.items():
            if not (factor.B.isfinite().all() and factor.A.isfinite().all()):
                return f"{name} holds NaN or inf"
        return _refusal_of_whole(update.full_parameters, state.full_parameters)


def _refusal_of_whole(parameters: FullParameters, known: FullParameters) -> str | None:
    if parameters.keys() != known.keys():
        return f"expected the whole parameters {sorted(known)}, got {sorted(parameters)}"
    for name, tensor in parameters.items():
        if tensor.shape != known[name].shape:
            return f"{name}: expected {tuple(known[name].shape)}, got {tuple(tensor.shape)}"
        if not tensor.isfinite().all():
            return f"{name} holds NaN or inf"
    return None


@dataclass(frozen=True, slots=True)
class LocalWork:
    """What an engine measured of one client's part in a round.

    Attributes:
        download_bytes: sent to the client before it trained.
        loss: mean training loss.
        seconds: of local training.
    """

    download_bytes: int
    loss: float
    seconds: float


def record(
    closed: ClosedRound, work: Mapping[str, LocalWork], metrics: Mapping[str, float], seconds: Mapping[str, float]
) -> RoundRecord:
    """The record of a closed round; every client that was sent something has its bytes counted.

    Args:
        closed: the round.
        work: by client id, of every client that was asked.
        metrics: of the global adapter after the round; empty where it was not evaluated.
        seconds: by phase.
    """
    certificate = closed.broadcast.certificate if closed.broadcast else None
    broadcast_bytes = certificate.bytes_out if certificate else 0
    clients = tuple(
        ClientRecord(
            client_id=update.client_id,
            rank=max((spec.rank for spec in update.adapter.specs.values()), default=0),
            num_examples=update.num_examples,
            upload_bytes=update.nbytes,
            download_bytes=work[update.client_id].download_bytes + broadcast_bytes,
            loss=work[update.client_id].loss,
            seconds=work[update.client_id].seconds,
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
        input_rank=certificate.input_rank if certificate else 0,
        cumulative_rank=closed.state.cumulative.total_rank,
        relative_error=certificate.relative_error if certificate else 0.0,
        ranks={name: module.rank for name, module in certificate.modules.items()} if certificate else {},
        upload_bytes=sum(client.upload_bytes for client in clients),
        download_bytes=sum(client.download_bytes for client in clients) + lost,
        broadcast_bytes=broadcast_bytes,
        stack_bytes=certificate.bytes_in if certificate else 0,
        clients=clients,
        dropped=closed.dropped,
        seconds=seconds,
    )
