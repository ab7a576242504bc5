"""What every exact method must satisfy; a new method is a new row of METHODS."""

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from florist.aggregation import Florist
from florist.errors import IncompatibleAdaptersError, InvalidUpdateError, NonFiniteUpdateError
from florist.factors import AdapterState, LoraFactor
from florist.ranks import EnergyThreshold
from florist.rounds import Aggregator, ClientUpdate
from tests.builders import SHAPES, adapter, dense_sum, federation, relative_error, update

METHODS: Mapping[str, Callable[[], Aggregator]] = {"florist": lambda: Florist(EnergyThreshold(1.0))}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)

ranks = st.lists(st.integers(1, 8), min_size=1, max_size=5)
counts = st.lists(st.integers(1, 1000), min_size=5, max_size=5)


@every_method
@given(ranks=ranks, counts=counts, seed=st.integers(0, 999))
@settings(max_examples=25)
def test_the_broadcast_is_the_weighted_sum(method: Callable[[], Aggregator], ranks, counts, seed) -> None:
    updates = federation(ranks, counts=counts[: len(ranks)], seed=seed)
    broadcast = method()(updates)
    for module in SHAPES:
        expected = dense_sum(updates, module)
        assert relative_error(broadcast.shared[module].delta_weight(), expected) < 1e-12


@every_method
def test_in_single_precision_the_error_is_that_of_single_precision(method: Callable[[], Aggregator]) -> None:
    updates = federation([4, 8, 2], dtype=torch.float32)
    broadcast = method()(updates)
    for module in SHAPES:
        assert relative_error(broadcast.shared[module].delta_weight(), dense_sum(updates, module)) < 1e-5


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_updates_are_combined_in_single_precision(
    method: Callable[[], Aggregator], dtype: torch.dtype
) -> None:
    updates = federation([4, 3], counts=[1, 2], dtype=dtype)
    broadcast = method()(updates)
    for module in SHAPES:
        assert relative_error(broadcast.shared[module].delta_weight(), dense_sum(updates, module)) < 1e-5


@every_method
def test_one_client_is_the_identity(method: Callable[[], Aggregator]) -> None:
    only = federation([5])
    broadcast = method()(only)
    for module, factor in only[0].adapter.items():
        assert relative_error(broadcast.shared[module].delta_weight(), factor.delta_weight()) < 1e-12
        assert broadcast.shared[module].rank == 5


@every_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_clients_change_nothing(method: Callable[[], Aggregator], dtype: torch.dtype) -> None:
    held = adapter(3, seed=7, dtype=dtype)
    broadcast = method()([update(f"c{k}", held, num_examples=k + 1) for k in range(6)])
    for module, factor in held.items():
        assert broadcast.shared[module].rank == 3
        assert relative_error(broadcast.shared[module].delta_weight(), factor.delta_weight()) < 1e-6


@every_method
def test_the_order_of_arrival_changes_no_bit(method: Callable[[], Aggregator]) -> None:
    updates = federation([4, 8, 2, 6], counts=[3, 1, 4, 1], dtype=torch.float32)
    first, second = method()(updates).shared, method()(updates[::-1]).shared
    for module in SHAPES:
        assert torch.equal(first[module].B, second[module].B)
        assert torch.equal(first[module].A, second[module].A)


@every_method
def test_the_gauge_of_the_factors_is_free(method: Callable[[], Aggregator]) -> None:
    updates = federation([4, 3])
    turned = [update(u.client_id, _turned(u.adapter, seed=9), num_examples=u.num_examples) for u in updates]
    first, second = method()(updates).shared, method()(turned).shared
    for module in SHAPES:
        assert relative_error(second[module].delta_weight(), first[module].delta_weight()) < 1e-10


@every_method
def test_weights_are_shares_of_the_examples(method: Callable[[], Aggregator]) -> None:
    few = method()(federation([4, 3], counts=[3, 1])).shared
    many = method()(federation([4, 3], counts=[3000, 1000])).shared
    for module in SHAPES:
        assert torch.allclose(few[module].delta_weight(), many[module].delta_weight(), atol=1e-12)


@every_method
def test_a_module_that_a_client_lacks_is_its_zero_update(method: Callable[[], Aggregator]) -> None:
    both, one = adapter(2, 1), adapter(3, 2, shapes={"layers.0.q_proj": (12, 16)})
    broadcast = method()([update("a", both), update("b", one)])
    expected = both["layers.1.up"].delta_weight() / 2  # not renormalised
    assert relative_error(broadcast.shared["layers.1.up"].delta_weight(), expected) < 1e-12
    assert broadcast.certificate.modules["layers.1.up"].absent_from == ("b",)
    assert broadcast.certificate.modules["layers.0.q_proj"].absent_from == ()


@every_method
def test_a_zero_update_is_broadcast_as_nothing(method: Callable[[], Aggregator]) -> None:
    zero = AdapterState.of({"m": LoraFactor(torch.zeros(5, 2), torch.randn(2, 4))})
    broadcast = method()([update("a", zero), update("b", zero)])
    assert float(broadcast.shared["m"].delta_weight().norm()) == 0.0
    assert broadcast.certificate.modules["m"].energy_kept == 1.0
    assert broadcast.certificate.modules["m"].relative_error == 0.0


@every_method
def test_whole_parameters_are_averaged_by_examples(method: Callable[[], Aggregator]) -> None:
    updates = [
        ClientUpdate("a", adapter(2, 1), 3, 1, {"head.weight": torch.tensor([1.0, 2.0])}),
        ClientUpdate("b", adapter(2, 2), 1, 1, {"head.weight": torch.tensor([5.0, 2.0])}),
    ]
    assert torch.equal(method()(updates).full_parameters["head.weight"], torch.tensor([2.0, 2.0]))


@every_method
def test_bytes_are_those_of_the_tensors(method: Callable[[], Aggregator]) -> None:
    updates = federation([4, 2], dtype=torch.float32)
    broadcast = method()(updates)
    assert broadcast.certificate.bytes_in == sum(4 * 6 * (m + n) for m, n in SHAPES.values())
    held = sum(factor.B.nbytes + factor.A.nbytes for factor in broadcast.shared.values())
    assert broadcast.certificate.bytes_out == held


@every_method
def test_nothing_to_aggregate_is_refused(method: Callable[[], Aggregator]) -> None:
    with pytest.raises(InvalidUpdateError, match="at least one update"):
        method()([])


@every_method
def test_two_updates_of_one_client_are_refused(method: Callable[[], Aggregator]) -> None:
    with pytest.raises(InvalidUpdateError, match="got two of 'a'"):
        method()([update("a", adapter(2, 1)), update("a", adapter(2, 2))])


@every_method
def test_updates_of_two_rounds_are_refused(method: Callable[[], Aggregator]) -> None:
    with pytest.raises(InvalidUpdateError, match="expected updates of one round"):
        method()([update("a", adapter(2, 1)), update("b", adapter(2, 2), round_number=2)])


@every_method
@pytest.mark.parametrize("count", [0, -5])
def test_a_client_without_examples_is_refused(method: Callable[[], Aggregator], count: int) -> None:
    with pytest.raises(InvalidUpdateError, match=f"positive number of examples, got {count} of 'a'"):
        method()([update("a", adapter(2, 1), num_examples=count)])


@every_method
def test_unlike_shapes_are_refused_by_name(method: Callable[[], Aggregator]) -> None:
    # (8, 8) and (8, 16) at rank 8: told apart by name, never by which dimension looks like a rank.
    first, second = adapter(8, 1, shapes={"m": (8, 8)}), adapter(8, 2, shapes={"m": (8, 16)})
    with pytest.raises(IncompatibleAdaptersError, match=r"m: expected \(8, 8\) as of 'a', got \(8, 16\) of 'b'"):
        method()([update("a", first), update("b", second)])


@every_method
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused_by_client_and_module(
    method: Callable[[], Aggregator], value: float
) -> None:
    broken = adapter(2, 3)["layers.1.up"]
    broken.B[3, 1] = value
    bad = AdapterState.of({**adapter(2, 3), "layers.1.up": broken})
    with pytest.raises(NonFiniteUpdateError, match=r"'bad'.*layers\.1\.up"):
        method()([update("a", adapter(2, 1)), update("bad", bad), update("c", adapter(2, 4))])


@every_method
def test_whole_parameters_of_only_one_client_are_refused(method: Callable[[], Aggregator]) -> None:
    with_head = ClientUpdate("a", adapter(2, 1), 1, 1, {"head.weight": torch.ones(2)})
    with pytest.raises(IncompatibleAdaptersError, match=r"head\.weight"):
        method()([with_head, update("b", adapter(2, 2))])


def _turned(held: AdapterState, seed: int) -> AdapterState:
    """The same products from other factors: B G and G^-1 A."""
    draw = torch.Generator().manual_seed(seed)
    turned = {}
    for name, factor in held.items():
        G = torch.randn(factor.rank, factor.rank, generator=draw, dtype=torch.float64) + 3 * torch.eye(factor.rank)
        turned[name] = LoraFactor(factor.B @ G, torch.linalg.solve(G, factor.A))
    return AdapterState.of(turned)
