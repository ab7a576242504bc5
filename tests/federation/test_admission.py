"""A client that sends what no method can use costs the round its own update and nothing else."""

from dataclasses import replace

import pytest
import torch

from florist.aggregation import (
    FedEx,
    FedIt,
    FfaLora,
    FlexLora,
    Flora,
    Florist,
    FullFineTuning,
    LinearRounds,
    RaFlora,
)
from florist.factors import AdapterState, LoraFactor
from florist.federation.admission import LARGEST_NORM
from florist.federation.guard import Guard
from florist.federation.local_init import Fresh, LocalInit, Warm
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.ranks import EnergyThreshold
from florist.rounds import Aggregator, ClientUpdate
from tests.builders import SHAPES, adapter, dense_sum, relative_error, update, with_shared_rows

RANKS = {"client_0": 2, "client_1": 8, "client_2": 4, "client_3": 4}
METHODS = {
    "florist": Florist(EnergyThreshold(0.9)),
    "lossless": Florist(EnergyThreshold(1.0)),
    "flora": Flora(),
    "fedit": FedIt(),
    "flexlora": FlexLora(8),
    "fedex": FedEx(),
    "raflora": RaFlora(8),
}
every_method = pytest.mark.parametrize("aggregator", METHODS.values(), ids=METHODS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def rules(aggregator: Aggregator, local_init: LocalInit | None = None) -> Federation:
    return Federation(RANKS, aggregator, SHAPES, seed=0, local_init=local_init or Fresh(), min_replies=1)


def spoilt(held: AdapterState, *, of_B: float = 1.0, of_A: float = 1.0, plus_A: float = 0.0) -> AdapterState:
    return held.map(lambda factor: LoraFactor(factor.B * of_B, factor.A * of_A + plus_A))


def honest(seed: int = 0) -> list[ClientUpdate]:
    return [
        update(name, with_shared_rows(rank, seed + k), num_examples=k + 1)
        for k, (name, rank) in enumerate(RANKS.items())
    ]


# --- what no arithmetic is for


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_factors_that_are_no_ordinary_floats_are_dropped(dtype: torch.dtype) -> None:
    sent = honest()
    sent[1] = update("client_1", sent[1].adapter.map(lambda factor: factor.to(dtype=dtype)))
    closed = rules(Florist(EnergyThreshold(0.9))).close_round(ServerState.initial(), sent)
    assert [drop.client_id for drop in closed.dropped] == ["client_1"]
    assert f"expected floating-point factors of 16, 32 or 64 bits, got {dtype}" in closed.dropped[0].reason


@pytest.mark.parametrize("dtype", [torch.int32, torch.float64])
def test_saved_parameters_of_another_dtype_are_dropped(dtype: torch.dtype) -> None:
    heads = [torch.ones(3), torch.ones(3, dtype=dtype)]
    sent = [replace(u, saved_parameters={"head": head}) for u, head in zip(honest()[:2], heads, strict=True)]
    closed = rules(Florist(EnergyThreshold(0.9))).close_round(ServerState.initial({"head": torch.zeros(3)}), sent)
    assert [drop.reason for drop in closed.dropped] == [f"head: expected torch.float32, got {dtype}"]
    assert closed.state.saved_parameters["head"].dtype == torch.float32


# --- an A that nobody trains


@pytest.mark.parametrize("liar", RANKS)
@pytest.mark.parametrize("plus_A", [1e-9, 1.0])
def test_who_changes_rows_that_nobody_trains_is_dropped_and_nobody_else(liar: str, plus_A: float) -> None:
    updates = honest()
    sent = [
        update(u.client_id, spoilt(u.adapter, plus_A=plus_A), num_examples=50) if u.client_id == liar else u
        for u in updates
    ]
    closed = rules(FfaLora()).close_round(ServerState.initial(), sent)
    assert [drop.client_id for drop in closed.dropped] == [liar]
    assert "expected A as the client was given it, since B alone is trained" in closed.dropped[0].reason
    kept = [u for u in updates if u.client_id != liar]
    for module in SHAPES:
        assert relative_error(closed.state.continued[module].delta_weight(), dense_sum(kept, module)) < 1e-12


@pytest.mark.parametrize(("off", "counts"), [(1e-6, True), (1e-3, False), (1.0, False)])
def test_rows_that_clients_derive_may_differ_by_rounding_and_the_sum_is_along_the_servers(
    off: float, counts: bool
) -> None:
    federation, state = rules(LinearRounds(EnergyThreshold(1.0))), ServerState.initial()
    for number in (1, 2):
        starts = {name: federation.start(state, name).local for name in RANKS}
        own = {
            name: AdapterState.of({m: LoraFactor(adapter(rank, k)[m].B, starts[name][m].A.double()) for m in SHAPES})
            for k, (name, rank) in enumerate(RANKS.items())
        }
        sent = [update(name, held, num_examples=3, round_number=number) for name, held in own.items()]
        sent[2] = update("client_2", one_row_turned(own["client_2"], off), num_examples=3, round_number=number)
        closed = federation.close_round(state, sent)
        assert [drop.client_id for drop in closed.dropped] == ([] if counts else ["client_2"])
        kept = [update(u.client_id, own[u.client_id], num_examples=3) for u in sent if counts or u != sent[2]]
        assert closed.broadcast is not None
        for module in SHAPES:
            found = closed.broadcast.shared[module].delta_weight()
            assert relative_error(found, dense_sum(kept, module)) < 1e-12
        state = closed.state


def one_row_turned(held: AdapterState, off: float) -> AdapterState:
    def turned(factor: LoraFactor) -> LoraFactor:
        A = factor.A.clone()
        A[0] += off * A[1]  # of equal norms
        return LoraFactor(factor.B, A)

    return held.map(turned)


def test_liars_who_agree_are_no_majority() -> None:
    updates = honest()
    sent = [update(u.client_id, spoilt(u.adapter, of_A=2.0)) for u in updates[1:]] + updates[:1]
    closed = rules(FfaLora()).close_round(ServerState.initial(), sent)
    assert [drop.client_id for drop in closed.dropped] == ["client_1", "client_2", "client_3"]
    assert [counted.client_id for counted in closed.counted] == ["client_0"]


def test_rows_in_a_coarser_dtype_are_not_the_rows_that_were_drawn() -> None:
    coarse = update("client_0", with_shared_rows(2, 1, dtype=torch.bfloat16))
    fine = update("client_1", with_shared_rows(4, 2, dtype=torch.float32))
    closed = rules(FfaLora()).close_round(ServerState.initial(), [coarse, fine])
    assert [drop.client_id for drop in closed.dropped] == ["client_0"]


@every_method
def test_where_rows_are_trained_any_count(aggregator: Aggregator) -> None:
    closed = rules(aggregator).close_round(
        ServerState.initial(), [update(name, adapter(rank, 1)) for name, rank in RANKS.items()]
    )
    assert closed.dropped == ()


# --- numbers that are finite and too large to square


@every_method
@every_dtype
@pytest.mark.parametrize(("of_B", "of_A"), [(1e25, 1e-25), (1e-25, 1e25), (1e15, 1e15), (1e37, 1.0)])
def test_an_update_that_would_overflow_is_dropped(
    aggregator: Aggregator, dtype: torch.dtype, of_B: float, of_A: float
) -> None:
    good = update("client_1", adapter(3, 1, dtype=dtype))
    diverged = update("client_0", spoilt(adapter(2, 2, dtype=dtype), of_B=of_B, of_A=of_A))
    closed = rules(aggregator).close_round(ServerState.initial(), [diverged, good])
    assert [drop.client_id for drop in closed.dropped] == ["client_0"]
    assert "expected norms below 1.8e+19" in closed.dropped[0].reason
    assert closed.broadcast is not None


@every_method
@every_dtype
@pytest.mark.parametrize("local_init", [Fresh(), Warm()], ids=["fresh", "warm"])
@pytest.mark.parametrize("large", ["B", "A", "both"])
def test_what_is_just_small_enough_can_be_aggregated(
    aggregator: Aggregator, dtype: torch.dtype, local_init: LocalInit, large: str
) -> None:
    # The guard would refuse one of two that is so much longer than the other.
    federation = replace(rules(aggregator, local_init), guard=Guard(norm_factor=None))
    state = ServerState.initial()

    def extreme(factor: LoraFactor) -> LoraFactor:
        B, A = factor.B / factor.B.norm(), factor.A / factor.A.norm()
        limit = 0.99 * LARGEST_NORM
        scale = {"B": (limit, 1.0), "A": (1.0, limit), "both": (limit**0.5, limit**0.5)}[large]
        return LoraFactor(B * scale[0], A * scale[1])

    for number in (1, 2):
        sent = [
            update(name, adapter(rank, 10 * number + k, dtype=dtype).map(extreme), round_number=number)
            for k, (name, rank) in enumerate(RANKS.items())
        ]
        closed = federation.close_round(state, sent)
        assert closed.dropped == ()
        assert closed.broadcast is not None
        state = closed.state
        for held in (state.cumulative, state.continued):
            assert all(half.isfinite().all() for factor in held.values() for half in (factor.B, factor.A))


# --- whole weights


def test_factors_where_whole_weights_are_trained_are_dropped() -> None:
    weights = {f"{name}.weight": torch.ones(shape) for name, shape in SHAPES.items()}
    state = ServerState.initial(weights)
    good = ClientUpdate("client_1", AdapterState.of({}), 1, 1, weights)
    closed = rules(FullFineTuning()).close_round(state, [ClientUpdate("client_0", adapter(2, 1), 1, 1, weights), good])
    assert [drop.reason for drop in closed.dropped] == ["expected whole weights, got factors of layers.0.q_proj"]
    assert closed.broadcast is not None
