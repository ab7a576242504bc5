from collections.abc import Callable

import pytest
import torch

from florist.errors import NonFiniteUpdateError
from florist.factors import LoraFactor, stack
from florist.linalg import ThinSvd, qr_svd
from florist.linalg.gram import gram_svd
from florist.linalg.thin_svd import rounding_floor
from tests.linalg.matrices import falling, gaussian, reconstruction, relative_error, with_spectrum

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rank", [1, 7, 20, 24, 40])
def test_it_reproduces_the_product_for_any_rank(rank: int, dtype: torch.dtype) -> None:
    factor = gaussian(24, 20, rank, dtype=dtype)
    svd = qr_svd(factor)
    expected = factor.to(dtype=torch.float64).delta_weight()
    tolerance = TOLERANCE.get(dtype, 1e-5)
    assert svd.S.numel() == min(20, rank)
    assert relative_error(reconstruction(svd), expected) < tolerance
    S = torch.linalg.svdvals(expected)[: svd.S.numel()]
    assert torch.allclose(svd.S, S, atol=tolerance * float(S[0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e12])
def test_its_resolution_separates_values_from_noise(condition: float, dtype: torch.dtype) -> None:
    # Ten values down to 1 / condition, and ten components more that add nothing.
    S = torch.cat([falling(condition, 10), torch.zeros(10, dtype=torch.float64)])
    factor = with_spectrum(S, 60, 50, dtype=torch.float64)
    exact = torch.linalg.svdvals(factor.to(dtype=dtype).to(dtype=torch.float64).delta_weight())
    svd = qr_svd(factor.to(dtype=dtype))
    floor = svd.spectrum.resolution * float(svd.S[0])
    assert float((svd.S - exact[:20]).abs().max()) < floor
    if dtype == torch.float64:
        assert int((svd.S > floor).sum()) == 10


def test_weights_are_those_of_the_components() -> None:
    factor = gaussian(12, 9, 3)
    weights = torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64)
    assert relative_error(reconstruction(qr_svd(factor, weights)), factor.B * weights @ factor.A) < 1e-13


@pytest.mark.parametrize("copies", [2, 3, 10])
def test_equal_stacks_have_the_rank_of_one(copies: int) -> None:
    factor = gaussian(60, 50, 8, dtype=torch.float32)
    svd = qr_svd(stack([factor.scaled(1 / copies)] * copies))
    assert int((svd.S > svd.spectrum.resolution * svd.S[0]).sum()) == 8


def test_what_cancels_resolves_nothing() -> None:
    factor = gaussian(60, 50, 8, dtype=torch.float32)
    svd = qr_svd(stack([factor, factor.scaled(-1.0)]))
    assert int((svd.S > svd.spectrum.resolution * svd.S[0]).sum()) == 0


def test_a_zero_update_has_no_rank() -> None:
    svd = qr_svd(LoraFactor(torch.zeros(6, 2), torch.ones(2, 5)))
    assert int((svd.S > 0).sum()) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("half", ["B", "A"])
def test_what_is_not_finite_is_refused(bad: float, half: str) -> None:
    factor = gaussian(12, 9, 3)
    getattr(factor, half)[0, 0] = bad
    with pytest.raises(NonFiniteUpdateError, match=r"expected finite factors.*\(12, 3\)"):
        qr_svd(factor)


@pytest.mark.parametrize("solve", [qr_svd, gram_svd])
@pytest.mark.parametrize(("left", "right"), [(2.0**20, 2.0**-20), (2.0**-20, 2.0**20), (2.0**10, 2.0**10)])
def test_what_is_known_depends_on_the_product_alone(
    solve: Callable[[LoraFactor], ThinSvd], left: float, right: float
) -> None:
    # Not on how a client shares its scale out between the halves, although terms cancel to a thousandth.
    factor = gaussian(60, 50, 8)
    cancelling = stack([factor, factor.scaled(1e-3 - 1)])
    plain = solve(cancelling).spectrum
    moved = solve(LoraFactor(left * cancelling.B, right * cancelling.A)).spectrum
    assert plain.resolution > rounding_floor(torch.float64)
    assert moved.resolution == pytest.approx(plain.resolution, rel=1e-3)
    assert moved.known_from == pytest.approx((left * right) ** 2 * plain.known_from, rel=1e-3)
