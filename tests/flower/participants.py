"""Clients without a model: their updates are random factors, which the seed of the assignment gives away."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from flwr.clientapp import ClientApp
from torch import Tensor

from florist.aggregation import Florist
from florist.factors import AdapterState, LoraFactor
from florist.federation.local_init import LocalStart
from florist.flower import FloristStrategy, client_app
from florist.flower.messages import Assignment
from florist.flower.participant import TrainedLocally
from florist.ranks import EnergyThreshold
from florist.rounds import Aggregator, SavedParameters, Trained
from florist.seeding import derive_seed, random_rows
from tests.builders import SHAPES, adapter
from tests.flower.grids import Deliver, MemoryGrid


@dataclass
class Light:
    """A client whose update depends on the seed of the assignment alone."""

    client_id: str
    rank: int = 2
    num_examples: int = 1
    base: str = "the base"
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=lambda: SHAPES)
    trained: Trained = Trained.FACTORS
    saved_parameters: SavedParameters = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=lambda: {"loss": 1.0})
    held_out: int = 0
    starts: list[tuple[int, LocalStart]] = field(default_factory=list)
    evaluated: list[AdapterState] = field(default_factory=list)

    def train(self, start: LocalStart, saved_parameters: SavedParameters, assignment: Assignment) -> TrainedLocally:
        self.starts.append((assignment.round_number, start))
        own = trained_adapter(self, assignment.seed)
        if self.trained == Trained.B:
            own = AdapterState.of(
                {
                    name: LoraFactor(
                        factor.B,
                        random_rows(assignment.rows_seed, name, assignment.max_rank, factor.A.shape[1])[: self.rank],
                    )
                    for name, factor in own.items()
                }
            )
        saved = {name: saved_parameters.get(name, first) + 1 for name, first in self.saved_parameters.items()}
        return TrainedLocally(own, saved, 0.5, 0.25)

    def evaluate(self, adapter: AdapterState, saved_parameters: SavedParameters) -> Mapping[str, float]:
        self.evaluated.append(adapter)
        return self.metrics if self.held_out else {}


def trained_adapter(client: Light, seed: int) -> AdapterState:
    return adapter(client.rank, seed, shapes=client.shapes, dtype=torch.float32)


def app_of(clients: Mapping[int, Light]) -> ClientApp:
    return client_app(lambda context: clients[context.node_id])


def play(
    clients: Mapping[int, Light], *, rounds: int = 1, deliver: Deliver | None = None, **settings: object
) -> tuple[FloristStrategy, MemoryGrid]:
    """Rounds over a grid of these clients, by node."""
    strategy, grid = between(clients, deliver=deliver, **settings)
    strategy.start(grid, num_rounds=rounds)
    return strategy, grid


def between(
    clients: Mapping[int, Light],
    *,
    deliver: Deliver | None = None,
    aggregator: Aggregator | None = None,
    **settings: object,
) -> tuple[FloristStrategy, MemoryGrid]:
    """A strategy and a grid that have not met yet."""
    grid = MemoryGrid(app_of(clients), {node: {} for node in clients}, *([deliver] if deliver else []))
    given = {"wait": 0.1, "min_clients": len(clients), **settings}
    return FloristStrategy(aggregator or Florist(EnergyThreshold(1.0)), **given), grid


def expected_sum(clients: list[Light], round_number: int, module: str) -> Tensor:
    """The oracle: the weighted sum of the updates of a round, dense, in float64."""
    total = sum(client.num_examples for client in clients)
    found = torch.zeros(SHAPES[module], dtype=torch.float64)
    for client in clients:
        seed = derive_seed(0, "training", round_number, client.client_id)
        factor = trained_adapter(client, seed)[module]
        found += client.num_examples / total * (factor.B.double() @ factor.A.double())
    return found


def dense(held: AdapterState, module: str) -> Tensor:
    """The update of a module; zero where there is none."""
    return held[module].delta_weight().double() if module in held else torch.zeros(SHAPES[module], dtype=torch.float64)
