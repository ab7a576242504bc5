from collections.abc import Callable

import pytest
import torch

from florist.factors import LoraFactor
from florist.linalg import ThinSvd, qr_svd
from florist.linalg.dense import dense_gram_svd, dense_svd
from florist.linalg.gram import gram_svd
from florist.linalg.thin_svd import no_directions
from tests.linalg.matrices import falling, gaussian, reconstruction, relative_error, with_spectrum


def test_factor_is_the_best_approximation_split_evenly() -> None:
    factor = gaussian(12, 9, 5)
    svd = qr_svd(factor)
    U, S, Vh = torch.linalg.svd(factor.delta_weight(), full_matrices=False)
    best = svd.factor(3)
    assert relative_error(best.delta_weight(), U[:, :3] * S[:3] @ Vh[:3]) < 1e-12
    assert torch.allclose(best.B.norm(dim=0), best.A.norm(dim=1))
    assert best.B.is_contiguous()
    assert best.A.is_contiguous()


def test_forming_changes_nothing_but_what_is_held() -> None:
    factor = gaussian(12, 9, 5)
    svd = qr_svd(factor)
    formed = svd.leading(3).formed(torch.float64)
    assert formed.left.shape == (12, 3)
    assert formed.right.shape == (3, 9)
    assert relative_error(reconstruction(formed), svd.factor(3).delta_weight()) < 1e-14
    assert formed.spectrum.total_energy == pytest.approx(factor.energy())
    assert formed.spectrum.tail_energy == pytest.approx(float(svd.S[3:].square().sum()))
    assert svd.leading(4).formed(torch.float64).leading(2).factor(2).rank == 2


def test_transposing_exchanges_the_sides() -> None:
    svd = qr_svd(gaussian(12, 9, 5))
    assert svd.transposed().spectrum.shape == (9, 12)
    assert relative_error(reconstruction(svd.transposed()), reconstruction(svd).T) < 1e-14


@pytest.mark.parametrize("rank", [-1, 6])
def test_a_rank_that_is_not_held_is_refused(rank: int) -> None:
    svd = qr_svd(gaussian(12, 9, 5))
    with pytest.raises(ValueError, match=f"rank of 0 to 5.*got {rank}.*larger energy"):
        svd.factor(rank)


def test_no_directions_is_a_zero_update() -> None:
    nothing = no_directions(gaussian(12, 9, 5))
    assert (nothing.spectrum.shape, nothing.spectrum.total_energy, nothing.factor(0).spec.shape) == (
        (12, 9),
        0.0,
        (12, 9),
    )
    assert torch.count_nonzero(nothing.factor(0).delta_weight()) == 0


def test_vectors_are_formed_on_demand() -> None:
    svd = qr_svd(gaussian(12, 9, 5))
    assert isinstance(svd, ThinSvd)
    assert torch.allclose(svd.U.T @ svd.U, torch.eye(5, dtype=torch.float64))
    assert torch.allclose(svd.Vh @ svd.Vh.T, torch.eye(5, dtype=torch.float64))


SOLVERS: dict[str, Callable[[LoraFactor], ThinSvd]] = {
    "qr": qr_svd,
    "gram": gram_svd,
    "dense": lambda factor: dense_svd(factor.delta_weight()),
    "dense gram": lambda factor: dense_gram_svd(factor.delta_weight()),
}


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_vh_is_v_transposed_though_both_have_one_shape(solve: Callable[[LoraFactor], ThinSvd]) -> None:
    # torch.svd returns V and torch.linalg.svd V^H; where both are square, no shape tells that they were mixed up.
    factor = gaussian(9, 9, 9)
    W, svd = factor.delta_weight(), solve(factor)
    assert svd.U.shape == svd.Vh.shape == (9, 9)
    assert relative_error(svd.U * svd.S @ svd.Vh, W) < 1e-10
    assert relative_error(svd.U * svd.S @ svd.Vh.T, W) > 1
    assert relative_error(W @ svd.Vh.T, svd.U * svd.S) < 1e-10


@pytest.mark.parametrize("formed", [False, True])
@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_the_leading_and_the_trailing_directions_are_the_whole(
    solve: Callable[[LoraFactor], ThinSvd], formed: bool
) -> None:
    svd = solve(gaussian(12, 9, 9))
    svd = svd.formed(torch.float64) if formed else svd
    for rank in (0, 4, 9):
        leading, trailing = svd.leading(rank), svd.trailing(rank)
        assert torch.equal(torch.cat([leading.S, trailing.S]), svd.S)
        for part, S in ((leading, svd.S[:rank]), (trailing, svd.S[rank:])):
            assert relative_error(reconstruction(part).norm(), S.norm()) < 1e-12 or not S.numel()
        assert relative_error(reconstruction(leading) + reconstruction(trailing), reconstruction(svd)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_an_error_that_a_solver_says_it_knows_is_the_error(
    solve: Callable[[LoraFactor], ThinSvd], dtype: torch.dtype
) -> None:
    # From one value to the next the tail falls tenfold, and ends below the rounding of the factors of a cut.
    factor = with_spectrum(falling(1e15, 16), 30, 24, dtype=dtype)
    if solve in (SOLVERS["dense"], SOLVERS["dense gram"]):
        factor = LoraFactor(factor.delta_weight(), torch.eye(24, dtype=dtype))  # whose product rounds nothing
    svd, known = solve(factor), 0
    W = factor.to(dtype=torch.float64).delta_weight()
    for rank in range(svd.S.numel() + 1):
        discarded = svd.spectrum.discarded_energy(rank)
        if discarded >= svd.spectrum.known_from:
            error = W - svd.factor(rank).to(dtype=torch.float64).delta_weight()
            assert discarded**0.5 == pytest.approx(float(error.norm()), rel=1e-3)
            known += 1
    assert 1 < known <= svd.S.numel()
