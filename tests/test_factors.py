import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from florist.errors import FloristError, InvalidAdapterError
from florist.factors import AdapterState, FactorSpec, LoraFactor, stack
from tests.builders import adapter, relative_error


def factor(m: int, n: int, rank: int, seed: int = 0) -> LoraFactor:
    return adapter(rank, seed, shapes={"x": (m, n)})["x"]


@given(m=st.integers(1, 12), n=st.integers(1, 12), ranks=st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_the_stack_is_the_sum_of_the_products(m: int, n: int, ranks: list[int]) -> None:
    factors = [factor(m, n, rank, seed) for seed, rank in enumerate(ranks)]
    stacked = stack(factors)
    assert stacked.rank == sum(ranks)
    expected = sum((f.B @ f.A for f in factors), start=torch.zeros(m, n, dtype=torch.float64))
    assert torch.allclose(stacked.delta_weight(), expected, atol=1e-12)


def test_averaging_the_halves_apart_is_not_the_average() -> None:
    first, second = factor(5, 4, 2, 0), factor(5, 4, 2, 1)
    exact = (first.delta_weight() + second.delta_weight()) / 2
    apart = ((first.B + second.B) / 2) @ ((first.A + second.A) / 2)
    assert relative_error(apart, exact) > 0.1


@given(m=st.integers(1, 12), n=st.integers(1, 12), rank=st.integers(0, 8), weight=st.floats(-3, 3))
def test_energy_is_the_squared_norm_of_the_product(m: int, n: int, rank: int, weight: float) -> None:
    scaled = factor(m, n, rank).scaled(weight)
    assert scaled.energy() == pytest.approx(float(scaled.delta_weight().square().sum()), rel=1e-9, abs=1e-12)


@pytest.mark.usefixtures("without_shape_checks")
def test_a_rank_one_half_is_not_broadcast_into_another() -> None:
    with pytest.raises(InvalidAdapterError, match=r"of one rank r, got B \(64, 8\) and A \(1, 64\)"):
        LoraFactor(torch.zeros(64, 8), torch.zeros(1, 64))


@pytest.mark.usefixtures("without_shape_checks")
def test_halves_of_unlike_dtype_are_refused() -> None:
    with pytest.raises(InvalidAdapterError, match="of one dtype on one device"):
        LoraFactor(torch.zeros(4, 2), torch.zeros(2, 4, dtype=torch.float64))


@pytest.mark.usefixtures("without_shape_checks")
def test_an_error_is_caught_as_florist_error_and_as_the_builtin() -> None:
    with pytest.raises(FloristError):
        LoraFactor(torch.zeros(4, 2), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="expected B"):
        LoraFactor(torch.zeros(4, 2), torch.zeros(3, 4))


def test_nothing_to_stack_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one factor"):
        stack([])


def test_a_state_is_sorted_read_only_and_counts_without_reading() -> None:
    def never(module: str) -> LoraFactor:
        raise AssertionError(module)

    spec = FactorSpec(8, 4, 2, torch.float16)
    state = AdapterState({"b": spec, "a": spec}, never)
    assert list(state) == ["a", "b"]
    assert state.total_rank == 4
    assert state.nbytes == 2 * 2 * (8 + 4) * 2
    assert not hasattr(state, "__setitem__")


def test_a_state_reads_anew_at_each_access() -> None:
    held = factor(3, 3, 1)
    reads: list[str] = []

    def read(module: str) -> LoraFactor:
        reads.append(module)
        return held

    state = AdapterState({"m": held.spec}, read)
    assert state["m"] is held
    assert state["m"] is held
    assert reads == ["m", "m"]
    with pytest.raises(KeyError):
        state["other"]


def test_a_state_on_another_device_is_copied_there_when_it_is_read() -> None:
    read: list[str] = []
    held = LoraFactor(torch.ones(3, 2), torch.ones(2, 4))
    state = AdapterState({"a": held.spec}, lambda name: (read.append(name), held)[1]).on("meta")
    assert (read, state.specs) == ([], {"a": held.spec})
    assert state["a"].B.device.type == state["a"].A.device.type == "meta"


@given(rank=st.integers(0, 6), cut=st.integers(0, 8))
def test_the_leading_and_trailing_components_are_the_whole(rank: int, cut: int) -> None:
    whole = factor(4, 5, rank)
    parts = whole.leading(cut), whole.trailing(cut)
    assert (parts[0].rank, parts[1].rank) == (min(rank, cut), max(0, rank - cut))
    assert torch.equal(stack(parts).B, whole.B)
    assert torch.equal(stack(parts).A, whole.A)


@given(rank=st.integers(0, 6), padded=st.integers(0, 9))
def test_padding_keeps_the_product_and_the_first_components(rank: int, padded: int) -> None:
    whole = factor(4, 5, rank)
    found = whole.padded(padded)
    assert found.rank == max(rank, padded)
    assert torch.equal(found.leading(rank).B, whole.B)
    assert torch.equal(found.leading(rank).A, whole.A)
    assert not found.trailing(rank).B.any()
    assert not found.trailing(rank).A.any()


def test_a_changed_adapter_has_every_factor_changed() -> None:
    held = AdapterState.of({"a": factor(2, 4, 3), "b": factor(3, 2, 1)})
    changed = held.map(lambda f: f.scaled(2.0))
    assert list(changed) == ["a", "b"]
    assert torch.equal(changed["b"].B, 2 * held["b"].B)
    assert changed.specs == held.specs


@pytest.mark.parametrize("small", [1e-3, 1e-6, 1e-9, 1e-12])
def test_the_energy_of_components_that_cancel_keeps_its_digits(small: float) -> None:
    draw = torch.Generator().manual_seed(0)
    B, A, own = (torch.randn(9, 9, generator=draw, dtype=torch.float64) for _ in range(3))
    factor = LoraFactor(torch.cat([B, -B], dim=1), torch.cat([A + small * own, A]))
    assert factor.energy() ** 0.5 == pytest.approx(small * float((B @ own).norm()), rel=3e-3)
    assert LoraFactor(torch.cat([B, -B], dim=1), torch.cat([A, A])).energy() >= 0
