"""The costs of a federation by method, from the shapes of a model, a population, and how things travel."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from florist.aggregation.efficiency import communication_efficiency
from florist.planning.architectures import ModelShape, Shape
from florist.planning.kept import KeptRanks
from florist.planning.memory import client_bytes, server_bytes
from florist.planning.operations import PAPER, SOLVERS, operations
from florist.planning.population import Population
from florist.planning.sending import SENDING, ModuleGroup, RoundRanks, planned_method
from florist.planning.traffic import Link, Traffic

METHOD_NAMES = tuple(SENDING)


@dataclass(frozen=True, slots=True)
class Setup:
    """A federation that may be.

    Attributes:
        model: the base.
        modules: the adapted modules and their shapes, by name.
        population: the clients.
        rounds: how many rounds are played; none fails.
        kept: the ranks that a rank rule keeps of a broadcast.
        link: how numbers travel.
        aligned: whether local adapters start along the last broadcast, where the method leaves that open.
        weight_itemsize: the bytes of one number of the base.
    """

    model: ModelShape
    modules: Mapping[str, Shape]
    population: Population
    rounds: int = 1
    kept: KeptRanks = field(default_factory=KeptRanks)
    link: Link = field(default_factory=Link)
    aligned: bool = True
    weight_itemsize: int = 4

    @property
    def groups(self) -> tuple[ModuleGroup, ...]:
        """The modules, those together that cost the same."""
        counted = Counter((shape, self.kept.of(name)) for name, shape in self.modules.items())
        return tuple(ModuleGroup(shape, count, kept) for (shape, kept), count in counted.items())


@dataclass(frozen=True, slots=True)
class ClientCost:
    """What a method asks of a client of one rank.

    Attributes:
        rank: the rank.
        clients: how many clients have it.
        upload_bytes: what it sends in a round that asks it.
        download_bytes: what it is sent for such a round, on average: the broadcast, and what it missed before.
        memory_bytes: what it holds while it trains, without activations.
    """

    rank: int
    clients: int
    upload_bytes: float
    download_bytes: float
    memory_bytes: float


@dataclass(frozen=True, slots=True)
class MethodCost:
    """What a method costs.

    Attributes:
        total_rank: the rank of the broadcast over all modules, as the FLoRIST paper counts it; None where weights
            travel.
        efficiency: its communication efficiency, see `communication_efficiency`.
        upload_bytes: what all clients send in all rounds.
        download_bytes: what is sent to them, catch-up included.
        catch_up_bytes: the part of it that was missed.
        broadcast_bytes: one copy of a broadcast, to a client of the largest rank.
        server_flops: the operations of a round by the paper's formulas, for one adapted module of each layer, as the
            paper counts; None where it has no formula.
        solver_flops: the operations of a round by florist's own solvers, for all adapted modules.
        server_bytes: what the server holds when it aggregates.
        by_rank: what each client of a rank sends, receives and holds.
    """

    total_rank: float | None
    efficiency: float | None
    upload_bytes: int
    download_bytes: int
    catch_up_bytes: int
    broadcast_bytes: int
    server_flops: float | None
    solver_flops: float
    server_bytes: int
    by_rank: tuple[ClientCost, ...]

    @property
    def traffic_bytes(self) -> int:
        """What all clients send and receive in all rounds."""
        return self.upload_bytes + self.download_bytes


def plan(setup: Setup, methods: Sequence[str] = METHOD_NAMES) -> dict[str, MethodCost]:
    """The costs of every method, by its name.

    Where every round asks every client, bytes are exact; else they are expectations.

    Cost: independent of the number of clients; linear in the rounds and in the kinds of modules.
    """
    return {name: _cost(setup, name) for name in methods}


def _cost(setup: Setup, name: str) -> MethodCost:
    method, groups, population = planned_method(name), setup.groups, setup.population
    ranks = RoundRanks.of(population, setup.link.upload_rank if method.cuts_uploads else None)
    traffic = Traffic(method, groups, ranks, setup.link, setup.aligned)
    missed_by = traffic.catch_up(population.asked_share, setup.rounds)
    by_rank: list[ClientCost] = []
    up = down = missed = 0.0
    for rank, count in sorted(population.counts.items()):
        upload, broadcast = traffic.upload(rank), traffic.broadcast(rank)
        catch_up = missed_by(rank)
        held = client_bytes(
            method, ranks, groups, setup.model, rank, rounds=setup.rounds, weight_itemsize=setup.weight_itemsize
        )
        by_rank.append(ClientCost(rank, count, upload, broadcast + catch_up, held))
        times = count * population.asked_share * setup.rounds
        up, down, missed = up + times * upload, down + times * (broadcast + catch_up), missed + times * catch_up
    total_rank = _total_rank(setup, name, ranks)
    paper = operations(PAPER, method, ranks, groups)
    solvers = operations(SOLVERS, method, ranks, groups)
    return MethodCost(
        total_rank=total_rank,
        efficiency=communication_efficiency(total_rank or 0.0, method.work.broadcast),
        upload_bytes=round(up),
        download_bytes=round(down),
        catch_up_bytes=round(missed),
        broadcast_bytes=round(traffic.broadcast(ranks.largest)),
        server_flops=paper * setup.model.layers / len(setup.modules) if paper is not None else None,
        solver_flops=solvers or 0.0,
        server_bytes=round(server_bytes(method, ranks, groups, setup.rounds, setup.weight_itemsize)),
        by_rank=tuple(by_rank),
    )


def _total_rank(setup: Setup, name: str, ranks: RoundRanks) -> float | None:
    paper_rank = SENDING[name].paper_rank
    if paper_rank is None:
        return None
    return sum(group.count * paper_rank(ranks, group) for group in setup.groups)
