"""What every method must satisfy; a new method is a new entry of METHODS."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from florist.aggregation import (
    FedEx,
    FedIt,
    FedSvd,
    FfaLora,
    FlexLora,
    Flora,
    Florist,
    FullFineTuning,
    LinearRounds,
    RaFlora,
    WholeSum,
    lossless_sum,
)
from florist.errors import IncompatibleAdaptersError, InvalidUpdateError, NonFiniteUpdateError
from florist.factors import AdapterState, LoraFactor
from florist.ranks import EnergyThreshold
from florist.rounds import Aggregator, Broadcast, ClientUpdate, Trained
from tests.builders import SHAPES, adapter, dense_sum, relative_error, update, with_shared_rows


def without_factors(rank: int, seed: int, **settings: object) -> AdapterState:
    return AdapterState.of({})


@dataclass(frozen=True)
class Case:
    aggregator: Aggregator
    exact: bool = True
    halves_apart: bool = False
    adapter: Callable[..., AdapterState] = adapter

    def federation(
        self,
        ranks: Sequence[int],
        counts: Sequence[int] | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> list[ClientUpdate]:
        counts = counts or [1] * len(ranks)
        return [
            update(f"client_{k}", self.adapter(rank, 100 * seed + k, dtype=dtype), num_examples=count)
            for k, (rank, count) in enumerate(zip(ranks, counts, strict=True))
        ]


METHODS: Mapping[str, Case] = {
    "florist": Case(Florist(EnergyThreshold(1.0))),
    "flora": Case(Flora()),
    "flexlora": Case(FlexLora(max_rank=99)),
    "fedex": Case(FedEx()),
    "ffa": Case(FfaLora(), adapter=with_shared_rows),
    "linear": Case(LinearRounds(EnergyThreshold(1.0)), adapter=with_shared_rows),
    "fedsvd": Case(FedSvd(), adapter=with_shared_rows),
    "fedit": Case(FedIt(), exact=False, halves_apart=True),
    "raflora": Case(RaFlora(max_rank=99), exact=False),
}
EXACT = {name: method for name, method in METHODS.items() if method.exact}
ALL = {**METHODS, "full": Case(FullFineTuning(), adapter=without_factors)}

every_lora_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
every_exact_method = pytest.mark.parametrize("method", EXACT.values(), ids=EXACT)
every_method = pytest.mark.parametrize("method", ALL.values(), ids=ALL)

ranks = st.lists(st.integers(1, 8), min_size=1, max_size=5)
counts = st.lists(st.integers(1, 1000), min_size=5, max_size=5)


def realised(broadcast: Broadcast, module: str) -> Tensor:
    """What the broadcast makes of the uploads: the added and the continued part."""
    parts = [part[module].to(dtype=torch.float64) for part in (broadcast.shared, broadcast.continued) if module in part]
    return sum((part.delta_weight() for part in parts), start=torch.zeros(()))


@every_exact_method
@given(ranks=ranks, counts=counts, seed=st.integers(0, 999))
@settings(max_examples=15)
def test_exact_methods_give_the_weighted_sum(method: Case, ranks, counts, seed) -> None:
    updates = method.federation(ranks, counts[: len(ranks)], seed)
    broadcast = method.aggregator(updates)
    for module in SHAPES:
        assert relative_error(realised(broadcast, module), dense_sum(updates, module)) < 1e-12


@every_lora_method
@given(ranks=ranks, counts=counts, seed=st.integers(0, 999))
@settings(max_examples=15)
def test_the_certificate_is_the_truth(method: Case, ranks, counts, seed) -> None:
    updates = method.federation(ranks, counts[: len(ranks)], seed)
    broadcast = method.aggregator(updates)
    for module, shape in SHAPES.items():
        exact, certified = dense_sum(updates, module), broadcast.certificate.modules[module]
        norm = float(exact.norm())
        assert certified.norm == pytest.approx(norm)
        assert certified.error == pytest.approx(
            float((realised(broadcast, module) - exact).norm()), rel=1e-6, abs=1e-7 * norm
        )
        assert certified.energy_kept == pytest.approx(1 - certified.relative_error**2, abs=1e-9)
        assert (certified.shape, certified.input_rank) == (shape, sum(ranks))
        sent = [part.specs[module].rank for part in (broadcast.shared, broadcast.continued) if module in part]
        assert certified.rank == sum(sent)


def test_the_whole_sum_is_stacked_and_its_norms_are_left_open() -> None:
    updates = METHODS["florist"].federation([3, 1, 4], counts=[2, 5, 1])
    broadcast = WholeSum()(updates)
    for module in SHAPES:
        assert relative_error(realised(broadcast, module), dense_sum(updates, module)) < 1e-14
        certified = broadcast.certificate.modules[module]
        assert certified.rank == certified.input_rank == 8
        # No number, which one might take for the truth.
        assert math.isnan(certified.norm)
        assert math.isnan(certified.error)
        assert math.isnan(certified.energy_kept)


def test_the_mean_of_the_halves_is_not_the_mean_of_the_products() -> None:
    updates = METHODS["fedit"].federation([4, 4, 4])
    certificate = FedIt()(updates).certificate
    assert all(module.relative_error > 0.3 for module in certificate.modules.values())


@every_exact_method
def test_in_single_precision_the_error_is_that_of_single_precision(method: Case) -> None:
    updates = method.federation([4, 8, 2], dtype=torch.float32)
    broadcast = method.aggregator(updates)
    for module in SHAPES:
        assert relative_error(realised(broadcast, module), dense_sum(updates, module)) < 1e-5


@every_lora_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_updates_are_combined_in_single_precision(method: Case, dtype: torch.dtype) -> None:
    updates = method.federation([4, 3], [1, 2], dtype=dtype)
    widened = [
        update(u.client_id, u.adapter.map(lambda f: f.to(dtype=torch.float32)), num_examples=u.num_examples)
        for u in updates
    ]
    found, expected = method.aggregator(updates), method.aggregator(widened)
    for module in SHAPES:
        assert relative_error(realised(found, module), realised(expected, module)) < 1e-6
    assert all(spec.dtype == torch.float32 for spec in (found.shared or found.continued).specs.values())


@every_lora_method
def test_one_client_is_the_identity(method: Case) -> None:
    only = method.federation([5])
    broadcast = method.aggregator(only)
    for module, factor in only[0].adapter.items():
        assert relative_error(realised(broadcast, module), factor.delta_weight()) < 1e-12
        assert broadcast.certificate.modules[module].rank == 5


@every_lora_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_clients_change_nothing(method: Case, dtype: torch.dtype) -> None:
    held = method.adapter(3, seed=7, dtype=dtype)
    broadcast = method.aggregator([update(f"c{k}", held, num_examples=k + 1) for k in range(6)])
    whole = lossless_sum([broadcast.shared, broadcast.continued])
    for module, factor in held.items():
        assert whole[module].rank == 3
        assert relative_error(realised(broadcast, module), factor.delta_weight()) < 1e-6
        assert broadcast.certificate.modules[module].relative_error < 1e-7


@every_lora_method
def test_the_order_of_arrival_changes_no_bit(method: Case) -> None:
    updates = method.federation([4, 8, 2, 6], [3, 1, 4, 1], dtype=torch.float32)
    first, second = method.aggregator(updates), method.aggregator(updates[::-1])
    for one, other in ((first.shared, second.shared), (first.continued, second.continued)):
        assert list(one) == list(other)
        for module in one:
            assert torch.equal(one[module].B, other[module].B)
            assert torch.equal(one[module].A, other[module].A)
    assert first.certificate == second.certificate


# Where B alone is trained, clients have no free gauge, since A is given.
@pytest.mark.parametrize("name", [name for name, case in EXACT.items() if Trained.A in case.aggregator.work.trained])
def test_the_gauge_of_the_factors_is_free(name: str) -> None:
    updates = EXACT[name].federation([4, 3])
    turned = [update(u.client_id, _turned(u.adapter, seed=9), num_examples=u.num_examples) for u in updates]
    first, second = EXACT[name].aggregator(updates), EXACT[name].aggregator(turned)
    for module in SHAPES:
        assert relative_error(realised(second, module), realised(first, module)) < 1e-10


def test_means_of_halves_depend_on_the_gauge() -> None:
    updates = METHODS["fedit"].federation([4, 4])
    turned = [updates[0], update("client_1", _turned(updates[1].adapter, seed=9))]
    for module in SHAPES:
        assert relative_error(realised(FedIt()(turned), module), realised(FedIt()(updates), module)) > 0.1


@every_lora_method
def test_weights_are_shares_of_the_examples(method: Case) -> None:
    few = method.aggregator(method.federation([4, 3], [3, 1]))
    many = method.aggregator(method.federation([4, 3], [3000, 1000]))
    equal = method.aggregator(method.federation([4, 3], [1, 1]))
    for module in SHAPES:
        assert torch.allclose(realised(few, module), realised(many, module), atol=1e-12)
        assert relative_error(realised(equal, module), realised(few, module)) > 0.01


@every_exact_method
def test_unlike_scalings_are_those_of_the_clients(method: Case) -> None:
    # (r, alpha) = (2, 8), (4, 8): scalings 4 and 2, folded in. One alpha for both would be off by much.
    raw = {"a": (method.adapter(2, 1), 4.0), "b": (method.adapter(4, 2), 2.0)}
    updates = [update(name, held.map(lambda f, s=s: f.scaled(s))) for name, (held, s) in raw.items()]
    broadcast = method.aggregator(updates)
    for module in SHAPES:
        expected = sum(s * held[module].delta_weight() / 2 for held, s in raw.values())
        assert relative_error(realised(broadcast, module), expected) < 1e-12


@every_lora_method
def test_a_module_that_a_client_lacks_is_its_zero_update(method: Case) -> None:
    both, one = method.adapter(2, 1), method.adapter(3, 2, shapes={"layers.0.q_proj": (12, 16)})
    broadcast = method.aggregator([update("a", both), update("b", one)])
    exact = both["layers.1.up"].delta_weight() / 2  # not renormalised
    # Where halves are averaged apart, both are halved.
    expected = exact / 2 if method.halves_apart else exact
    assert relative_error(realised(broadcast, "layers.1.up"), expected) < 1e-12
    certified = broadcast.certificate.modules["layers.1.up"]
    assert certified.error == pytest.approx(float((expected - exact).norm()), abs=1e-6)
    assert certified.absent_from == ("b",)
    assert broadcast.certificate.modules["layers.0.q_proj"].absent_from == ()


@every_lora_method
def test_a_zero_update_is_broadcast_as_nothing(method: Case) -> None:
    zero = AdapterState.of({"m": LoraFactor(torch.zeros(5, 2), torch.ones(2, 4))})
    broadcast = method.aggregator([update("a", zero), update("b", zero)])
    assert float(realised(broadcast, "m").norm()) == 0.0
    assert broadcast.certificate.modules["m"].energy_kept == 1.0
    assert broadcast.certificate.modules["m"].relative_error == 0.0


@every_lora_method
def test_what_is_continued_comes_with_the_largest_rank_and_inputs_stay(method: Case) -> None:
    # One array shared by all clients once came back at the largest rank for everybody.
    updates = method.federation([2, 8, 4])
    before = [{n: (f.B.clone(), f.A.clone()) for n, f in u.adapter.items()} for u in updates]
    broadcast = method.aggregator(updates)
    assert all(spec.rank >= 6 for spec in broadcast.continued.specs.values())
    for u, held in zip(updates, before, strict=True):
        for name, (B, A) in held.items():
            assert torch.equal(u.adapter[name].B, B)
            assert torch.equal(u.adapter[name].A, A)


@every_lora_method
def test_bytes_are_those_of_the_halves_that_travel(method: Case) -> None:
    updates = method.federation([4, 2], dtype=torch.float32)
    broadcast = method.aggregator(updates)
    travels_A = Trained.A in method.aggregator.work.trained
    assert broadcast.certificate.bytes_in == sum(4 * 6 * (m + n * travels_A) for m, n in SHAPES.values())
    held = sum(f.B.nbytes + f.A.nbytes for f in broadcast.shared.values())
    travels_down = Trained.A in method.aggregator.work.broadcast
    held += sum(f.B.nbytes + f.A.nbytes * travels_down for f in broadcast.continued.values())
    assert broadcast.certificate.bytes_out == held


@every_method
def test_saved_parameters_are_averaged_by_examples(method: Case) -> None:
    updates = [
        ClientUpdate("a", method.adapter(2, 1), 3, 1, {"head.weight": torch.tensor([1.0, 2.0])}),
        ClientUpdate("b", method.adapter(2, 2), 1, 1, {"head.weight": torch.tensor([5.0, 2.0])}),
    ]
    broadcast = method.aggregator(updates)
    assert torch.equal(broadcast.saved_parameters["head.weight"], torch.tensor([2.0, 2.0]))
    assert broadcast.certificate.bytes_in >= 16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_mean_of_saved_parameters_has_the_precision_of_their_dtype(dtype: torch.dtype) -> None:
    counts = [1, 2, 4]
    heads = [torch.randn(50, generator=torch.Generator().manual_seed(k)).double().add(9).to(dtype) for k in range(3)]
    updates = [
        ClientUpdate(str(k), adapter(2, k), count, 1, {"head": head})
        for k, (count, head) in enumerate(zip(counts, heads, strict=True))
    ]
    found = Flora()(updates).saved_parameters["head"]
    exact = sum(count * head.double() for count, head in zip(counts, heads, strict=True)) / 7
    assert found.dtype == dtype
    # Half precision rounds once, at the end: a number is off by half a step at most.
    roundings = 0.501 if dtype.itemsize == 2 else 2
    torch.testing.assert_close(found.double(), exact, rtol=roundings * torch.finfo(dtype).eps, atol=0)


@every_method
def test_nothing_to_aggregate_is_refused(method: Case) -> None:
    with pytest.raises(InvalidUpdateError, match="at least one update"):
        method.aggregator([])


@every_method
def test_two_updates_of_one_client_are_refused(method: Case) -> None:
    with pytest.raises(InvalidUpdateError, match="got two of 'a'"):
        method.aggregator([update("a", method.adapter(2, 1)), update("a", method.adapter(2, 2))])


@every_method
def test_updates_of_two_rounds_are_refused(method: Case) -> None:
    with pytest.raises(InvalidUpdateError, match="expected updates of one round"):
        method.aggregator([update("a", method.adapter(2, 1)), update("b", method.adapter(2, 2), round_number=2)])


@every_method
@pytest.mark.parametrize("count", [0, -5])
def test_a_client_without_examples_is_refused(method: Case, count: int) -> None:
    with pytest.raises(InvalidUpdateError, match=f"positive number of examples, got {count} of 'a'"):
        method.aggregator([update("a", method.adapter(2, 1), num_examples=count)])


@every_lora_method
def test_unlike_shapes_are_refused_by_name(method: Case) -> None:
    # (8, 8) and (8, 16) at rank 8: told apart by name, never by which dimension looks like a rank.
    first, second = method.adapter(8, 1, shapes={"m": (8, 8)}), method.adapter(8, 2, shapes={"m": (8, 16)})
    with pytest.raises(
        IncompatibleAdaptersError, match=r"m: expected the shape \(8, 8\) that 'a' has, got \(8, 16\) of 'b'"
    ):
        method.aggregator([update("a", first), update("b", second)])


@every_lora_method
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused_by_client_and_module(method: Case, value: float) -> None:
    held = method.adapter(2, 3)
    broken = held["layers.1.up"]
    broken.B[3, 1] = value
    bad = AdapterState.of({**held, "layers.1.up": broken})
    with pytest.raises(NonFiniteUpdateError, match=r"'bad'.*layers\.1\.up"):
        method.aggregator([update("a", method.adapter(2, 1)), update("bad", bad), update("c", method.adapter(2, 4))])


@every_method
def test_a_saved_parameter_that_is_not_finite_is_refused(method: Case) -> None:
    bad = ClientUpdate("bad", method.adapter(2, 1), 1, 1, {"head.weight": torch.tensor([math.nan])})
    with pytest.raises(NonFiniteUpdateError, match=r"'bad'.*head\.weight"):
        method.aggregator([bad])


@every_method
def test_saved_parameters_of_only_one_client_are_refused(method: Case) -> None:
    with_head = ClientUpdate("a", method.adapter(2, 1), 1, 1, {"head.weight": torch.ones(2)})
    with pytest.raises(IncompatibleAdaptersError, match=r"head\.weight"):
        method.aggregator([with_head, update("b", method.adapter(2, 2))])


def _turned(held: AdapterState, seed: int) -> AdapterState:
    """The same products from other factors: B G and G^-1 A."""
    draw = torch.Generator().manual_seed(seed)
    turned = {}
    for name, factor in held.items():
        G = torch.randn(factor.rank, factor.rank, generator=draw, dtype=torch.float64) + 3 * torch.eye(factor.rank)
        turned[name] = LoraFactor(factor.B @ G, torch.linalg.solve(G, factor.A))
    return AdapterState.of(turned)
