import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from florist.errors import NonFiniteUpdateError
from florist.factors import LoraFactor, stack
from florist.linalg.eigenpairs import gram_matrix
from florist.linalg.gram import gram_svd
from tests.linalg.matrices import falling, gaussian, oracle_rank, reconstruction, relative_error, with_spectrum

CONDITIONS = (1e2, 1e4, 1e6, 1e9, 1e12)


@pytest.mark.parametrize("rank", [1, 13, 20, 24, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_it_reproduces_the_product_for_any_rank(rank: int, dtype: torch.dtype) -> None:
    factor = gaussian(24, 20, rank, dtype=dtype)
    working = factor if dtype == torch.float64 else factor.to(dtype=torch.float32)
    svd = gram_svd(working)
    expected = factor.to(dtype=torch.float64).delta_weight()
    assert relative_error(reconstruction(svd), expected) < (1e-12 if dtype == torch.float64 else 1e-6)
    assert svd.S.numel() == min(rank, 20)
    assert torch.allclose(svd.S, torch.linalg.svdvals(expected)[: svd.S.numel()], rtol=1e-10)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("gauge", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("gram_dtype", [torch.float32, torch.float64])
def test_no_squared_value_is_off_by_more_than_the_resolution(
    condition: float, gauge: float, gram_dtype: torch.dtype
) -> None:
    factor = with_spectrum(falling(condition, 30), 90, 70, gauge=gauge)
    exact = torch.linalg.svdvals(factor.delta_weight()).square()
    svd = gram_svd(factor, gram_dtype=gram_dtype)
    k = svd.S.numel()
    assert k > 0 or svd.spectrum.resolution >= 1  # nothing at all stands above the noise
    noise = svd.spectrum.resolution**2 * float(svd.S[0].square() if k else exact[0])
    assert bool(((svd.S.square() - exact[:k]).abs() <= noise).all())
    # What is left out is at the level of the noise: nothing that could be told from zero is lost.
    assert float(exact[k:].sum()) <= 30 * 3 * noise
    assert svd.spectrum.total_energy == pytest.approx(float(exact.sum()), rel=1e-3, abs=30 * noise)


def test_the_precision_boundary_is_where_it_is_said_to_be() -> None:
    # Of values 1, 1e-1, ..., 1e-12, float64 Gram matrices resolve those above 1e-8, float32 ones those above 1e-3.
    factor = with_spectrum(torch.logspace(0, -12, 13, dtype=torch.float64), 60, 50)
    wide, narrow = gram_svd(factor), gram_svd(factor, gram_dtype=torch.float32)
    assert 1e-8 < wide.spectrum.resolution < 1e-7
    assert 1e-3 < narrow.spectrum.resolution < 1e-2
    assert (wide.S.numel(), narrow.S.numel()) == (8, 3)


def test_float32_factors_end_where_their_own_rounding_begins() -> None:
    factor = with_spectrum(torch.logspace(0, -12, 13, dtype=torch.float64), 60, 50, dtype=torch.float32)
    svd = gram_svd(factor)
    assert svd.spectrum.resolution == 8 * torch.finfo(torch.float32).eps
    assert svd.S.numel() == 7


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_fraction_takes_the_rank_of_the_oracle(energy: float, condition: float) -> None:
    factor = with_spectrum(falling(condition, 30), 90, 70)
    expected = factor.delta_weight()
    squares = torch.linalg.svdvals(expected).square()
    svd = gram_svd(factor, energy=energy)
    assert svd.S.numel() == oracle_rank(squares, energy)
    error = (expected - reconstruction(svd)).square().sum()
    assert svd.spectrum.tail_energy == pytest.approx(float(squares[svd.S.numel() :].sum()), rel=1e-6, abs=1e-14)
    assert svd.spectrum.tail_energy == pytest.approx(float(error), rel=1e-6, abs=1e-14)


@given(
    ranks=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    scales=st.lists(st.floats(-12, 12), min_size=4, max_size=4),
    seed=st.integers(0, 999),
)
@settings(max_examples=40)
def test_the_scale_at_which_a_client_keeps_its_halves_costs_nothing(
    ranks: list[int], scales: list[float], seed: int
) -> None:
    factors = [gaussian(20, 15, rank, seed=seed + i) for i, rank in enumerate(ranks)]
    rescaled = [LoraFactor(f.B * 10**s, f.A / 10**s) for f, s in zip(factors, scales, strict=False)]
    plain, moved = gram_svd(stack(factors)), gram_svd(stack(rescaled))
    assert torch.allclose(plain.S, moved.S, rtol=1e-9)
    assert moved.spectrum.resolution == pytest.approx(plain.spectrum.resolution)


def test_weights_are_those_of_the_components() -> None:
    factor = gaussian(12, 9, 4)
    weights = torch.tensor([2.0, 0.0, -1.0, 1e-6], dtype=torch.float64)
    svd = gram_svd(factor, weights)
    assert svd.S.numel() == 3
    assert relative_error(reconstruction(svd), factor.B * weights @ factor.A) < 1e-12


@pytest.mark.parametrize("copies", [2, 3, 10])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_stacks_have_the_rank_of_one(copies: int, dtype: torch.dtype) -> None:
    factor = gaussian(60, 50, 8, dtype=dtype)
    weights = torch.tensor([(i + 1) / 100 for i in range(copies) for _ in range(8)], dtype=torch.float64)
    svd = gram_svd(stack([factor] * copies), weights)
    assert svd.S.numel() == 8
    expected = float(weights[::8].sum()) * factor.to(dtype=torch.float64).delta_weight()
    assert relative_error(reconstruction(svd), expected) < (1e-12 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("gram_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("energy", [0.9, 1.0])
def test_zero_updates_have_no_directions(energy: float, gram_dtype: torch.dtype) -> None:
    factor = LoraFactor(torch.zeros(6, 2), torch.ones(2, 5))
    svd = gram_svd(factor, energy=energy, gram_dtype=gram_dtype)
    assert (svd.S.numel(), svd.spectrum.total_energy, svd.factor(0).spec.shape) == (0, 0.0, (6, 5))


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e-10, 1e10, 1e18])
def test_squares_outside_float32_are_formed_in_float64(scale: float) -> None:
    factor = gaussian(24, 20, 6, dtype=torch.float32)
    moved = LoraFactor(factor.B * scale, factor.A)
    svd = gram_svd(moved, energy=0.9, gram_dtype=torch.float32)
    expected = torch.linalg.svdvals(moved.to(dtype=torch.float64).delta_weight())
    assert torch.allclose(svd.S, expected[: svd.S.numel()], rtol=1e-4, atol=0)
    assert svd.S.numel() == oracle_rank(expected.square(), 0.9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("half", ["B", "A"])
@pytest.mark.parametrize("gram_dtype", [torch.float32, torch.float64])
def test_what_is_not_finite_is_refused(bad: float, half: str, gram_dtype: torch.dtype) -> None:
    factor = gaussian(12, 9, 3, dtype=torch.float32)
    getattr(factor, half)[0, 0] = bad
    with pytest.raises(NonFiniteUpdateError, match=r"expected finite factors.*\(12, 3\)"):
        gram_svd(factor, energy=0.9, gram_dtype=gram_dtype)


@pytest.mark.parametrize("rank", [1, 95, 96, 511, 601, 1700])
@pytest.mark.parametrize("features", [3, 1500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_matrices_are_whole(rank: int, features: int, dtype: torch.dtype) -> None:
    X = torch.randn(rank, features, generator=torch.Generator().manual_seed(rank))
    G = gram_matrix(X, dtype)
    assert G.dtype == dtype
    expected = X.double() @ X.double().T
    assert float((G - expected).abs().max()) < 100 * torch.finfo(dtype).eps * features
