import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from florist.aggregation import Florist, lossless_sum
from florist.errors import NonFiniteUpdateError
from florist.factors import AdapterState
from florist.ranks import EnergyThreshold
from tests.builders import SHAPES, adapter, dense_sum, federation, relative_error, update


@given(ranks=st.lists(st.integers(1, 8), min_size=1, max_size=5), tau=st.floats(0.05, 1.0), seed=st.integers(0, 999))
@settings(max_examples=50)
def test_rank_error_and_energy_are_those_of_the_dense_svd(ranks: list[int], tau: float, seed: int) -> None:
    updates = federation(ranks, seed=seed)
    broadcast = Florist(EnergyThreshold(tau))(updates)
    for module in SHAPES:
        dense = dense_sum(updates, module)
        energies = torch.linalg.svdvals(dense).square()
        total = float(energies.sum())
        rank = broadcast.shared[module].rank
        assert float(energies[:rank].sum()) >= (tau - 1e-10) * total
        assert rank == 1 or float(energies[: rank - 1].sum()) < (tau + 1e-10) * total
        certified = broadcast.certificate.modules[module]
        error = float((dense - broadcast.shared[module].delta_weight()).norm())
        assert certified.error == pytest.approx(error, rel=1e-6, abs=1e-7 * total**0.5)
        assert certified.norm == pytest.approx(float(dense.norm()))
        assert certified.energy_kept == pytest.approx(1 - error**2 / total, abs=1e-9)
        assert (certified.rank, certified.input_rank, certified.shape) == (rank, sum(ranks), SHAPES[module])


def test_the_relative_error_of_all_modules_is_that_of_the_stacked_weights() -> None:
    updates = federation([4, 8])
    broadcast = Florist(EnergyThreshold(0.7))(updates)
    dense = {module: dense_sum(updates, module) for module in SHAPES}
    lost = sum(float((dense[m] - broadcast.shared[m].delta_weight()).square().sum()) for m in SHAPES)
    norm = sum(float(dense[m].square().sum()) for m in SHAPES)
    assert broadcast.certificate.relative_error == pytest.approx((lost / norm) ** 0.5)


def test_singular_values_are_split_evenly() -> None:
    factor = Florist(EnergyThreshold(0.9))(federation([4, 8])).shared["layers.0.q_proj"]
    assert torch.allclose(factor.B.norm(dim=0), factor.A.norm(dim=1))


def test_a_small_update_survives_half_precision() -> None:
    # With all of S in B, its columns of norm 1e-6 would be lost among the subnormal numbers of fp16.
    small = [u.adapter for u in federation([4, 4], dtype=torch.float32)]
    updates = federation([4, 4], dtype=torch.float32)
    scaled = AdapterState.of({name: factor.scaled(1e-8) for name, factor in small[0].items()})
    updates = [type(updates[0])("a", scaled, 1, 1)]
    for module, factor in Florist(EnergyThreshold(1.0))(updates).shared.items():
        stored = factor.to(dtype=torch.float16).to(dtype=torch.float32)
        assert relative_error(stored.delta_weight(), scaled[module].delta_weight()) < 1e-2


def test_unlike_ranks_stay_unlike_and_inputs_stay_as_they_were() -> None:
    updates = federation([4, 8, 16])
    before = [{name: factor.B.clone() for name, factor in u.adapter.items()} for u in updates]
    Florist(EnergyThreshold(0.9))(updates)
    assert [{spec.rank for spec in u.adapter.specs.values()} for u in updates] == [{4}, {8}, {16}]
    for u, held in zip(updates, before, strict=True):
        assert all(torch.equal(u.adapter[name].B, B) for name, B in held.items())


@pytest.mark.parametrize("tau", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sum_that_is_zero_to_rounding_is_certified_as_zero(tau: float, dtype: torch.dtype) -> None:
    held = adapter(4, seed=1, dtype=dtype)
    updates = [
        update("a", held),
        update("b", held, num_examples=2),
        update("c", held.map(lambda f: f.scaled(-1)), num_examples=3),
    ]
    broadcast = Florist(EnergyThreshold(tau))(updates)
    assert broadcast.certificate.relative_error == 0.0
    for name, module in broadcast.certificate.modules.items():
        assert broadcast.shared[name].rank == module.rank == 0
        assert (module.energy_kept, module.norm, module.error, module.relative_error) == (1.0, 0.0, 0.0, 0.0)


def test_a_lossless_sum_is_the_sum_at_its_numerical_rank() -> None:
    first, second = adapter(2, 1), adapter(3, 2, shapes={"layers.0.q_proj": (12, 16), "other": (4, 4)})
    total = lossless_sum([first, second, second])
    assert list(total) == sorted({*SHAPES, "other"})
    expected = first["layers.0.q_proj"].delta_weight() + 2 * second["layers.0.q_proj"].delta_weight()
    assert relative_error(total["layers.0.q_proj"].delta_weight(), expected) < 1e-12
    assert total["layers.0.q_proj"].rank == 5
    assert len(lossless_sum([])) == 0


def test_a_lossless_sum_names_the_module_that_is_not_finite() -> None:
    first, second = adapter(3, seed=1), adapter(2, seed=2)
    second["layers.1.up"].A[0, 0] = float("nan")
    with pytest.raises(NonFiniteUpdateError, match=r"layers\.1\.up of adapter 2 of 2 holds NaN or infinity"):
        lossless_sum([first, second])


@pytest.mark.parametrize("rule", [EnergyThreshold(0.9), EnergyThreshold(1.0)])
def test_a_sum_that_overflows_is_no_nan_and_names_the_module(rule: EnergyThreshold) -> None:
    # Ranks that are summed densely: float32 holds the factors and not their product.
    updates = federation([8, 8], dtype=torch.float32)
    updates[0].adapter["layers.1.up"].B.mul_(1e20)
    updates[0].adapter["layers.1.up"].A.mul_(1e20)
    with pytest.raises(
        NonFiniteUpdateError, match=r"layers\.1\.up: expected a sum within the range of torch.float32"
    ) as told:
        Florist(rule)(updates)
    assert "NaN" not in str(told.value)
