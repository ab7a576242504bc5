"""Small federations whose clients train what a test says, for private rounds."""

from collections.abc import Mapping

import torch

from florist.aggregation import FfaLora, LinearRounds
from florist.factors import AdapterState, LoraFactor
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.ranks import EnergyThreshold
from florist.rounds import Aggregator, ClientUpdate

SHAPES = {"q": (12, 16), "v": (6, 16), "up": (20, 9)}
RANKS = {"a": 4, "b": 2, "c": 3, "d": 2, "e": 1}
WHOLE = LinearRounds(EnergyThreshold(1.0))
FFA = FfaLora()


def federation(
    ranks: Mapping[str, int] = RANKS,
    aggregator: Aggregator = WHOLE,
    shapes: Mapping[str, tuple[int, int]] = SHAPES,
    fraction: float = 1.0,
) -> Federation:
    return Federation(ranks, aggregator, shapes, seed=3, fraction=fraction)


def begun() -> ServerState:
    return ServerState.initial({"head.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(1))})


def trained(
    rules: Federation, state: ServerState, client_id: str, *, seed: int = 0, size: float = 0.1, examples: int = 10
) -> ClientUpdate:
    """What a client that starts where it should has trained, in float32."""
    draw = torch.Generator().manual_seed(1000 * seed + sum(map(ord, client_id)))
    rank = rules.client_ranks[client_id]
    rows, start = rules.rows(state, client_id), rules.start(state, client_id).local

    def factor(name: str, out_features: int) -> LoraFactor:
        A = rows(name)[:rank]
        before = start[name].padded(rank).B if name in start else torch.zeros(out_features, rank)
        step = size * torch.randn(out_features, rank, generator=draw)
        return LoraFactor(before + step * (A.norm(dim=1) > 0), A)

    adapter = AdapterState.of({name: factor(name, shape[0]) for name, shape in rules.shapes.items()})
    saved = {
        name: before + size * torch.randn(before.shape, generator=draw)
        for name, before in state.saved_parameters.items()
    }
    return ClientUpdate(client_id, adapter, examples, state.round_number + 1, saved)


def all_trained(rules: Federation, state: ServerState, *, seed: int = 0, size: float = 0.1) -> list[ClientUpdate]:
    """What all clients have trained, with unlike numbers of examples."""
    return [
        trained(rules, state, name, seed=seed, size=size, examples=10 + 7 * k)
        for k, name in enumerate(rules.client_ranks)
    ]
