import pytest
import torch
from torch import Tensor

from florist.linalg.eigenpairs import eigenpairs, fit_float32, gram_matrix
from tests.linalg.matrices import gaussian, generator, oracle_rank, orthonormal


def symmetric(values: Tensor, seed: int = 0) -> Tensor:
    Q = orthonormal(values.numel(), values.numel(), generator(seed))
    return Q * values @ Q.T


@pytest.mark.parametrize("energy", [0.7, 1.0])
def test_pairs_solve_the_eigenproblem(energy: float) -> None:
    factor = gaussian(30, 25, 12)
    G_B, G_A = gram_matrix(factor.B.T, torch.float64), gram_matrix(factor.A, torch.float64)
    pairs = eigenpairs(G_B, G_A, energy=energy, floor=1e-15)
    C, k = pairs.C, pairs.squares.numel()
    assert k == (12 if energy == 1 else oracle_rank(torch.linalg.svdvals(factor.delta_weight()).square(), energy))
    assert torch.allclose(G_B @ G_A @ C, C * pairs.squares)
    assert torch.allclose(C.T @ G_A @ C, torch.eye(k, dtype=torch.float64), atol=1e-12)
    assert pairs.tail_energy + float(pairs.squares.sum()) == pytest.approx(float((G_B * G_A).sum()))


def test_no_second_matrix_stands_for_the_identity() -> None:
    G = symmetric(torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0], dtype=torch.float64))
    implied = eigenpairs(G, None, energy=1.0, floor=1e-12)
    given = eigenpairs(G, torch.eye(5, dtype=torch.float64), energy=1.0, floor=1e-12)
    assert torch.allclose(implied.squares, torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64))
    assert torch.allclose(given.squares, implied.squares)


def test_a_matrix_that_rounding_made_indefinite_is_factorised_all_the_same() -> None:
    # Too far below zero for the shift, and first, so that Cholesky's factorisation gives up before it has begun.
    G_B = torch.diag(torch.tensor([-1e-10, 3.0, 2.0, 1.0], dtype=torch.float64))
    pairs = eigenpairs(G_B, torch.eye(4, dtype=torch.float64), energy=1.0, floor=1e-6)
    assert torch.allclose(pairs.squares, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    assert torch.allclose(pairs.C.abs(), torch.eye(4, dtype=torch.float64)[:, 1:])


def test_nothing_has_no_pairs() -> None:
    zero = torch.zeros(3, 3, dtype=torch.float64)
    pairs = eigenpairs(zero, zero, energy=0.9, floor=1e-12)
    assert (pairs.squares.numel(), pairs.C.shape, pairs.tail_energy) == (0, (3, 0), 0.0)


@pytest.mark.parametrize(
    ("B", "A", "fits"),
    [
        ([1.0, 0.0], [1.0, 1.0], True),
        ([1e14], [1e-14], True),
        ([1e16], [1e-16], False),
        ([1e-20], [1.0], True),
        ([1e-20], [1e-20], False),
        ([0.0], [1.0], False),
        ([float("nan")], [1.0], False),
        ([float("inf")], [1.0], False),
    ],
)
def test_what_float32_can_hold(B: list[float], A: list[float], fits: bool) -> None:
    assert fit_float32(torch.tensor(B, dtype=torch.float64), torch.tensor(A, dtype=torch.float64)) is fits
