"""Bytes that the server and a client hold: tensors that cannot be avoided, not the size of a process."""

import math
from collections.abc import Sequence

from florist.planning.architectures import ModelShape
from florist.planning.sending import ModuleGroup, PlannedMethod, RoundRanks
from florist.rounds import Trained

_FLOAT32 = 4
_TRAINED = 3 * _FLOAT32
"""Bytes that training adds to a float32 number: its gradient and the two moments of AdamW."""


def server_bytes(
    method: PlannedMethod, ranks: RoundRanks, groups: Sequence[ModuleGroup], rounds: int, weight_itemsize: int
) -> float:
    """What the server holds when it aggregates the last round.

    It holds all uploads, decoded; the broadcast that it makes of them; the global adapter; and for one module at a time
    what its solver works on: the stack, or the dense sum where that is smaller.

    Args:
        method: the method.
        ranks: what the round receives.
        groups: the adapted modules.
        rounds: how many rounds are played; the global adapter grows with them.
        weight_itemsize: the bytes of one number of weights that are trained themselves.
    """
    if method.whole_weights:
        weights = sum(group.count * math.prod(group.shape) for group in groups) * weight_itemsize
        return float((ranks.clients + 1) * weights)
    numbers = sum(
        group.count
        * sum(group.shape)
        * (
            ranks.stack
            + method.sending.shared(ranks, group)
            + method.sending.continued(ranks, group)
            + global_rank(method, ranks, group, rounds)
        )
        for group in groups
    )
    largest = max(min(ranks.stack * sum(g.shape) + 2 * ranks.stack**2, 3.0 * math.prod(g.shape)) for g in groups)
    decomposes = method.shares or method.sending.own_limit(groups[0]) < math.inf
    return (numbers + (largest if decomposes else 0.0)) * _FLOAT32


def client_bytes(
    method: PlannedMethod,
    ranks: RoundRanks,
    groups: Sequence[ModuleGroup],
    model: ModelShape,
    rank: int,
    *,
    rounds: int,
    weight_itemsize: int,
) -> float:
    """What a client of a rank holds when it trains in the last round, without activations.

    It holds the base; the local adapter in float32 with gradients and AdamW's moments; and the frozen global adapter.

    Args:
        method: the method.
        ranks: what a round receives.
        groups: the adapted modules.
        model: the base.
        rank: the rank of the client.
        rounds: how many rounds are played.
        weight_itemsize: the bytes of one number of the base.
    """
    base = float(model.parameters * weight_itemsize)
    if method.whole_weights:
        weights = sum(group.count * math.prod(group.shape) for group in groups)
        return base + 3.0 * weights * weight_itemsize
    halves = [side for side, half in enumerate((Trained.B, Trained.A)) if half in method.work.trained]
    for group in groups:
        local = rank * sum(group.shape) * _FLOAT32
        training = rank * sum(group.shape[side] for side in halves) * _TRAINED
        frozen = global_rank(method, ranks, group, rounds - 1) * sum(group.shape) * _FLOAT32
        base += group.count * (local + training + frozen)
    return base


def global_rank(method: PlannedMethod, ranks: RoundRanks, group: ModuleGroup, rounds: int) -> float:
    """The rank of what was added to a module in so many rounds, which all clients hold."""
    return method.sending.summed_rank(ranks, group, rounds) if rounds and method.shares else 0.0
