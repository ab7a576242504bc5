"""Rounds of which the server has one sum in the place of single updates, for methods that train B alone.

What a client sends is its change of B, in units in which the norm is that of the product: B times the norm of a row of
A. For linear rounds, whose rows of A are orthogonal and of that norm, this is exact. The rows of FFA-LoRA are random:
they have that norm in the root mean square, and the norm of the product is about that of the change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from florist.factors import AdapterState, LoraFactor
from florist.federation.closed_round import ClosedRound
from florist.federation.local_init import FRESH_ROW_NORM
from florist.federation.records import Drop
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.privacy.clipping import Change
from florist.rounds import ClientUpdate, SavedParameters, saved_bytes


@dataclass(frozen=True, slots=True, eq=False)
class Summed:
    """What the server has of a round.

    Attributes:
        mean: the weighted mean of what the clients changed. Modules and columns of B that it lacks did not change.
        weight: the sum of the weights, at least 1, for the record.
        took_part: the clients that are in the sum, in order, and the bytes that each of them sent.
    """

    mean: Change
    weight: int
    took_part: Mapping[str, int]


def change_of(begun: AdapterState, saved_parameters: SavedParameters, update: ClientUpdate) -> Change:
    """What a client's training changed, as it goes into a sum.

    Args:
        begun: the adapter that everybody trains on from, or the client's own cut of it; empty for methods that only
            add.
        saved_parameters: the values of the parameters that travel whole before the round.
        update: as it was trained, with B alone.
    """

    def changed(name: str, factor: LoraFactor) -> Tensor:
        B = factor.B
        if name in begun.specs:
            B = B - begun[name].leading(factor.rank).padded(factor.rank).B.to(B)
        return FRESH_ROW_NORM * B

    saved = {name: tensor - saved_parameters[name] for name, tensor in update.saved_parameters.items()}
    return Change({name: changed(name, factor) for name, factor in update.adapter.items()}, saved)


def close_summed_round(
    federation: Federation, state: ServerState, summed: Summed, dropped: Sequence[Drop] = ()
) -> ClosedRound:
    """Move the state on by one round, from one sum.

    The mean goes to the method as one update, along the rows of A that everybody derives, so that everything after the
    sum is as in other rounds.

    Args:
        federation: the rules.
        state: the state before the round.
        summed: the sum.
        dropped: the clients that were asked and are not in it.
    """
    moved = federation.moving_on(
        state,
        federation.aggregator([_as_update(federation, state, summed)]),
        [*summed.took_part],
        sum(summed.took_part.values()),
    )
    ranks = {client_id: federation.client_ranks[client_id] for client_id in summed.took_part}
    total = sum(ranks.values())
    numbers = total * sum(sum(shape) for shape in federation.shapes.values())
    heads = len(ranks) * saved_bytes(state.saved_parameters)
    return ClosedRound(
        state=moved.state,
        broadcast=moved.broadcast,
        counted=(),
        upload_bytes=summed.took_part,
        deliveries=moved.deliveries,
        dropped=tuple(dropped),
        ranks=ranks,
        stack_rank=total * len(federation.shapes),
        stack_bytes=numbers * torch.float32.itemsize + heads,
    )


def _as_update(federation: Federation, state: ServerState, summed: Summed) -> ClientUpdate:
    """The mean as the update of one client, of the largest rank."""
    ranks, begun, mean = federation.client_ranks, state.continued, summed.mean
    longest = max(sorted(ranks), key=lambda client_id: ranks[client_id])
    rows = federation.rows(state, longest)

    def factor(name: str, B: Tensor) -> LoraFactor:
        B = B.double() / FRESH_ROW_NORM
        if name in begun.specs:
            rank = max(B.shape[1], begun.specs[name].rank)
            B = torch.nn.functional.pad(B, (0, rank - B.shape[1])) + begun[name].padded(rank).B.to(B)
        A = rows(name)[: B.shape[1]]
        return LoraFactor(B.to(A), A)

    saved = {
        name: (before.double() + mean.saved_parameters[name].double().to(before.device)).to(before)
        for name, before in state.saved_parameters.items()
    }
    adapter = AdapterState.of({name: factor(name, B) for name, B in sorted(mean.B.items())})
    return ClientUpdate("the sum", adapter, summed.weight, state.round_number + 1, saved)
