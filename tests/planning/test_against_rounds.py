"""The planner counts what the rules of the rounds send: every method, every codec, and whoever was away."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import pytest
import torch

from florist.config.communication import CODEC_NAMES, aggregator_of, communication_of
from florist.config.methods import LOCAL_INITS, METHODS
from florist.config.sections import Config
from florist.factors import AdapterState, LoraFactor
from florist.federation.closed_round import ClosedRound
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.planning.architectures import ModelShape
from florist.planning.kept import KeptRanks
from florist.planning.operations import SOLVERS
from florist.planning.plan import METHOD_NAMES, MethodCost, Setup, plan
from florist.planning.population import Population
from florist.planning.traffic import Link
from florist.rounds import ClientUpdate, Trained, weight_name

# Odd sizes, so that codes of 3 bits do not fill their last byte; and a module that is smaller than the stack.
SHAPES = {"layers.0.q_proj": (23, 31), "layers.0.v_proj": (17, 31), "layers.1.up": (37, 11)}
MODEL = ModelShape("odd", SHAPES, layers=2, other_parameters=0)
KEPT = 3


def settings(method: str, codec: str, **federation: object) -> Config:
    """A configuration of the method with FixedRank, where it takes a rank rule."""
    rank = {"rank": KEPT} if "rank" in METHODS[method].keys else {}
    return Config.model_validate(
        {
            "model": {"name_or_path": "none"},
            "data": {"path": "none"},
            "lora": {"ranks": 4},
            "aggregation": {"method": method, **rank},
            "communication": {"preset": "plain", "upload": codec, "download": codec},
            "federation": federation,
        }
    )


def rules(config: Config, ranks: Sequence[int], shapes: Mapping[str, tuple[int, int]] = SHAPES) -> Federation:
    return Federation(
        client_ranks={str(k): rank for k, rank in enumerate(ranks)},
        aggregator=aggregator_of(config, max(ranks)),
        shapes=shapes,
        seed=1,
        local_init=LOCAL_INITS[config.federation.local_init](),
        min_replies=1,
        communication=communication_of(config),
    )


def initial(federation: Federation) -> ServerState:
    whole = Trained.WEIGHTS in federation.aggregator.work.trained
    return ServerState.initial(
        {weight_name(name): torch.zeros(shape) for name, shape in federation.shapes.items()} if whole else {}
    )


def uploaded(federation: Federation, state: ServerState, client: str) -> ClientUpdate:
    """What a client sends that trained something random, from where it was told to start."""
    rank, number, work = federation.client_ranks[client], state.round_number + 1, federation.aggregator.work
    draw = torch.Generator().manual_seed(100 * number + int(client))
    factors = {
        name: LoraFactor(
            torch.randn(m, rank, generator=draw),
            torch.randn(rank, n, generator=draw)
            if Trained.A in work.trained
            else federation.rows(state, client)(name)[:rank],
        )
        for name, (m, n) in federation.shapes.items()
    }
    whole = {name: torch.randn(value.shape, generator=draw) for name, value in state.saved_parameters.items()}
    trained = ClientUpdate(client, AdapterState.of({} if whole else factors), 1, number, whole)
    return federation.sent_update(state, trained).update


def closed_round(federation: Federation, state: ServerState, clients: Sequence[str]) -> tuple[ClosedRound, float]:
    """The outcome of a round, and the bytes that were sent to its clients, catch-up included."""
    caught_up = sum(federation.download(state, client).nbytes for client in clients)
    closed = federation.close_round(state, [uploaded(federation, state, client) for client in clients])
    assert closed.dropped == ()
    return closed, caught_up + sum(delivery.nbytes for delivery in closed.deliveries.values())


def planned(
    method: str,
    codec: str,
    counts: dict[int, int],
    rounds: int,
    fraction: float = 1.0,
    *,
    aligned: bool = True,
    shapes: Mapping[str, tuple[int, int]] = SHAPES,
) -> MethodCost:
    setup = Setup(
        MODEL,
        shapes,
        Population(counts, fraction),
        rounds,
        kept=KeptRanks(KEPT),
        link=Link.named(codec, codec),
        aligned=aligned,
    )
    return plan(setup, [method])[method]


def test_every_method_can_be_planned() -> None:
    assert set(METHOD_NAMES) == set(METHODS)
    assert set(SOLVERS) == set(METHODS)


@pytest.mark.parametrize(
    "codec", [pytest.param(name, marks=() if name in {"float32", "int3"} else pytest.mark.slow) for name in CODEC_NAMES]
)
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_bytes_and_ranks_are_those_of_the_rounds(method: str, codec: str) -> None:
    ranks, rounds = (7, 5, 5, 2), 2
    federation = rules(settings(method, codec), ranks)
    state, up, down = initial(federation), 0, 0.0
    for _ in range(rounds):
        closed, sent = closed_round(federation, state, list(federation.client_ranks))
        state, up, down = closed.state, up + sum(closed.upload_bytes.values()), down + sent
    expected = planned(method, codec, {7: 1, 5: 2, 2: 1}, rounds)
    assert (expected.upload_bytes, expected.download_bytes, expected.catch_up_bytes) == (up, down, 0)
    assert closed.broadcast is not None
    certificate = closed.broadcast.certificate
    assert expected.broadcast_bytes == certificate.bytes_out
    if method == "full":
        assert expected.total_rank is None
    elif method in {"flexlora", "raflora"}:  # of which the paper counts what a client is sent on average
        assert expected.total_rank == len(SHAPES) * 19 / 4
    else:
        assert expected.total_rank == certificate.total_rank
    for cost in expected.by_rank:
        name = next(name for name, rank in federation.client_ranks.items() if rank == cost.rank)
        assert (cost.upload_bytes, cost.download_bytes) == (
            closed.upload_bytes[name],
            closed.deliveries[name].nbytes,
        )


def schedules(federation: Federation, asked: int, rounds: int) -> Iterator[tuple[int, float]]:
    """The bytes up and down of every way in which clients may be asked, all of which are equally likely."""

    def play(state: ServerState, up: int, down: float) -> Iterator[tuple[int, float]]:
        if state.round_number == rounds:
            yield up, down
            return
        for clients in combinations(federation.client_ranks, asked):
            closed, sent = closed_round(federation, state, clients)
            yield from play(closed.state, up + sum(closed.upload_bytes.values()), down + sent)

    yield from play(initial(federation), 0, 0.0)


@pytest.mark.parametrize(
    ("method", "codec", "local_init"),
    [
        ("florist", "float32", "aligned"),
        *(
            pytest.param(method, codec, start, marks=pytest.mark.slow)
            for method, codec, start in (
                ("fedex", "int8", "aligned"),
                ("florist", "float32", "fresh"),
                ("florist", "int4", "aligned"),
                ("flora", "float32", "aligned"),
                ("linear", "float32", "aligned"),
                ("fedex", "float32", "aligned"),
                ("fedsvd", "float16", "aligned"),
                ("ffa", "int3", "aligned"),
                ("full", "float32", "aligned"),
            )
        ),
    ],
)
@pytest.mark.slow
def test_what_absent_clients_are_sent_is_the_mean_over_all_schedules(method: str, codec: str, local_init: str) -> None:
    rank, clients, asked, rounds = 4, 3, 2, 4
    shapes = {"layers.0.q_proj": SHAPES["layers.0.q_proj"]}
    federation = rules(settings(method, codec, local_init=local_init), [rank] * clients, shapes)
    found = list(schedules(federation, asked, rounds))
    assert len(found) == 3**4
    expected = planned(
        method, codec, {rank: clients}, rounds, asked / clients, aligned=local_init == "aligned", shapes=shapes
    )
    assert {up for up, _ in found} == {expected.upload_bytes}
    mean = sum(down for _, down in found) / len(found)
    assert expected.download_bytes == pytest.approx(mean, abs=1)
    assert expected.catch_up_bytes > 0
