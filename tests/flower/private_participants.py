"""Clients of private rounds without a model: they train B along the rows that they are given, by the seed they get."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from flwr.app import Message
from torch import Tensor

from florist.aggregation import LinearRounds
from florist.factors import AdapterState, LoraFactor
from florist.federation.local_init import LocalStart
from florist.federation.private_rounds import PrivateRounds
from florist.federation.protections import Masks
from florist.flower import FloristStrategy, client_app
from florist.flower.messages import Assignment
from florist.flower.participant import TrainedLocally
from florist.flower.private_terms import ANYTHING, Demands
from florist.ranks import EnergyThreshold
from florist.rounds import Aggregator, ClientUpdate, SavedParameters, Trained
from florist.seeding import random_rows
from tests.federation.private_federations import RANKS, SHAPES
from tests.flower.grids import Deliver, MemoryGrid

WHOLE = LinearRounds(EnergyThreshold(1.0))
HEAD = {"head.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(1))}
MASKED = PrivateRounds(Masks(bits=64))
NODES = {name: 11 + place for place, name in enumerate(RANKS)}
"""Node ids by client."""


@dataclass
class Trainer:
    """A client that trains what the seed of its assignment says, and remembers it."""

    client_id: str
    rank: int
    num_examples: int
    size: float = 0.1
    base: str = "the base"
    held_out: int = 3
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=lambda: SHAPES)
    trained: Trained = Trained.B
    saved_parameters: SavedParameters = field(default_factory=lambda: HEAD)
    updates: dict[int, ClientUpdate] = field(default_factory=dict)

    def train(self, start: LocalStart, saved_parameters: SavedParameters, assignment: Assignment) -> TrainedLocally:
        draw = torch.Generator().manual_seed(assignment.seed)

        def factor(name: str, shape: tuple[int, int]) -> LoraFactor:
            drawn = random_rows(assignment.rows_seed, name, assignment.max_rank, shape[1])
            given = start.local[name].padded(self.rank) if name in start.local else None
            A = start.local[name].A if given is not None else drawn[:0]
            A = torch.cat([A, drawn[A.shape[0] :]])[: self.rank]
            before = given.B if given is not None else torch.zeros(shape[0], self.rank)
            step = self.size * torch.randn(shape[0], self.rank, generator=draw)
            return LoraFactor(before + step * (A.norm(dim=1) > 0), A)

        adapter = AdapterState.of({name: factor(name, shape) for name, shape in sorted(self.shapes.items())})
        saved = {
            name: saved_parameters.get(name, first) + self.size * torch.randn(first.shape, generator=draw)
            for name, first in self.saved_parameters.items()
        }
        number = assignment.round_number
        self.updates[number] = ClientUpdate(self.client_id, adapter, self.num_examples, number, saved)
        return TrainedLocally(adapter, saved, 0.5, 0.25)

    def evaluate(self, adapter: AdapterState, saved_parameters: SavedParameters) -> Mapping[str, float]:
        return {"loss": 1.0}


def trainers(ranks: Mapping[str, int] = RANKS) -> dict[str, Trainer]:
    """Clients of unlike ranks and numbers of examples."""
    return {name: Trainer(name, rank, 10 + 7 * place) for place, (name, rank) in enumerate(ranks.items())}


def between(
    clients: Mapping[str, Trainer],
    private: PrivateRounds | None = MASKED,
    *,
    aggregator: Aggregator = WHOLE,
    deliver: Deliver | None = None,
    demands: Mapping[str, Demands] | None = None,
    **settings: object,
) -> tuple[FloristStrategy, MemoryGrid]:
    """A strategy of private rounds and a grid that have not met yet."""
    by_node = {NODES[name]: client for name, client in clients.items()}
    asked = demands if demands is not None else dict.fromkeys(clients, Demands(masked=True))
    app = client_app(
        lambda context: by_node[context.node_id],
        demands=lambda context: asked.get(by_node[context.node_id].client_id, ANYTHING),
    )
    grid = MemoryGrid(app, {node: {} for node in by_node}, *([deliver] if deliver else []))
    given = {"wait": 0.1, "min_clients": len(clients), "seed": 3, "evaluate_on_clients": False, **settings}
    return FloristStrategy(aggregator, private=private, **given), grid


def losing(lost: Mapping[str, frozenset[str]]) -> Deliver:
    """Replies get lost: message type -> clients."""
    names = {node: name for name, node in NODES.items()}

    def deliver(message: Message, reply: Message) -> list[Message]:
        gone = names[message.metadata.dst_node_id] in lost.get(message.metadata.message_type, frozenset())
        return [] if gone else [reply]

    return deliver


def answering(client: str, kind: str, change: Callable[[Message], list[Message]]) -> Deliver:
    """One client's replies to one kind of message are others."""

    def deliver(message: Message, reply: Message) -> list[Message]:
        meant = message.metadata.dst_node_id == NODES[client] and message.metadata.message_type == kind
        return change(reply) if meant else [reply]

    return deliver


def assert_same_bits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
