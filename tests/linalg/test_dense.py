import pytest
import torch

from florist.errors import NonFiniteUpdateError
from florist.linalg.dense import dense_gram_svd, dense_svd
from tests.linalg.matrices import falling, gaussian, oracle_rank, reconstruction, relative_error, with_spectrum

SHAPES = [(30, 20), (20, 30), (24, 24), (1, 7), (7, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_reproduces_a_dense_update_of_any_shape(shape: tuple[int, int], dtype: torch.dtype) -> None:
    W = gaussian(*shape, 40, dtype=dtype).delta_weight()
    for svd in (dense_gram_svd(W), dense_svd(W)):
        assert svd.spectrum.shape == shape
        assert svd.S.numel() == min(shape)
        assert relative_error(reconstruction(svd), W.double()) < (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("shape", SHAPES[:3])
@pytest.mark.parametrize("gram_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("energy", [0.5, 0.9])
def test_a_fraction_takes_the_rank_of_the_oracle(
    shape: tuple[int, int], gram_dtype: torch.dtype, energy: float
) -> None:
    W = with_spectrum(falling(1e3, 15), *shape, dtype=torch.float32).delta_weight()
    squares = torch.linalg.svdvals(W.double()).square()
    svd = dense_gram_svd(W, energy=energy, gram_dtype=gram_dtype)
    assert svd.S.numel() == oracle_rank(squares, energy)
    error = (W.double() - reconstruction(svd)).square().sum()
    assert svd.spectrum.tail_energy == pytest.approx(float(error), rel=1e-4)


def test_the_precision_boundary_is_where_it_is_said_to_be() -> None:
    W = with_spectrum(torch.logspace(0, -12, 13, dtype=torch.float64), 30, 20).delta_weight()
    ranks = [dense_gram_svd(W, gram_dtype=dtype).S.numel() for dtype in (torch.float32, torch.float64)]
    full = dense_svd(W)
    assert [*ranks, int((full.S > full.spectrum.resolution * full.S[0]).sum())] == [3, 8, 13]


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e25])
def test_squares_outside_float32_are_formed_in_float64(scale: float) -> None:
    W = gaussian(20, 30, 6, dtype=torch.float32).delta_weight() * scale
    svd = dense_gram_svd(W, energy=0.9, gram_dtype=torch.float32)
    expected = torch.linalg.svdvals(W.double())
    assert svd.S.numel() == oracle_rank(expected.square(), 0.9)
    assert torch.allclose(svd.S, expected[: svd.S.numel()], rtol=1e-4, atol=0)


def test_a_zero_update_has_no_directions() -> None:
    svd = dense_gram_svd(torch.zeros(5, 4))
    assert (svd.S.numel(), svd.factor(0).spec.shape) == (0, (5, 4))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("solve", [dense_gram_svd, dense_svd])
def test_what_is_not_finite_is_refused(bad: float, solve: type) -> None:
    W = torch.ones(5, 4)
    W[2, 1] = bad
    with pytest.raises(NonFiniteUpdateError, match=r"finite update.*\(5, 4\)|finite update.*\(4, 5\)"):
        solve(W)
