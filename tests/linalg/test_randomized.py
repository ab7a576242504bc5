import pytest
import torch
from torch import Tensor

from florist.factors import LoraFactor, stack
from florist.linalg.eigenpairs import eigenpairs, gram_matrix
from florist.linalg.randomized import _certified_rank, _largest, _largest_outside, leading_pairs
from tests.linalg.matrices import falling, gaussian, generator, oracle_rank, orthonormal

SIZE = 320


def federation(clients: int, rank: int, *, seed: int = 0, shared_A: bool = False) -> LoraFactor:
    """Adapters after one step on gradients that fall as 1/j, half of each common to all."""
    draw, size, spread = generator(seed), 400, 64
    fall = 1.0 / torch.arange(1, spread + 1, dtype=torch.float64)

    def gradient() -> Tensor:
        return orthonormal(size, spread, draw) * fall @ orthonormal(size, spread, draw).T

    common, first_A = gradient(), torch.randn(rank, size, generator=draw, dtype=torch.float64)
    factors: list[LoraFactor] = []
    for _ in range(clients):
        A = first_A if shared_A else torch.randn(rank, size, generator=draw, dtype=torch.float64)
        factors.append(LoraFactor((common + gradient()) @ A.T, A))
    return stack(factors)


def pair(factor: LoraFactor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Both Gram matrices and the squared singular values."""
    B, A = factor.B, factor.A
    core = torch.linalg.qr(B)[1] @ torch.linalg.qr(A.T)[1].T
    return gram_matrix(B.T.to(dtype), dtype), gram_matrix(A.to(dtype), dtype), torch.linalg.svdvals(core).square()


SPECTRA = {
    "1/i": 1.0 / torch.arange(1, SIZE + 1, dtype=torch.float64) ** 2,
    "1/i^2": 1.0 / torch.arange(1, SIZE + 1, dtype=torch.float64) ** 4,
    "geometric, to 1e-6": falling(1e6, SIZE).square(),
    "a step": torch.cat([torch.ones(12), torch.full((SIZE - 12,), 1e-4)]).double(),
    "steps": torch.cat([torch.ones(5), torch.full((10,), 0.1), torch.full((SIZE - 15,), 1e-5)]).double(),
    "one giant": torch.cat([torch.ones(1), 1e-3 * falling(1e3, SIZE - 1)]).double(),
}


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("seed", range(2))
def test_the_rank_is_the_oracle_s(name: str, energy: float, seed: int) -> None:
    squares = SPECTRA[name]
    Q = orthonormal(SIZE, SIZE, generator(seed))
    found = leading_pairs(Q * squares @ Q.T, None, energy=energy, total_energy=float(squares.sum()))
    assert found is not None
    theta, C = found
    assert theta.numel() == oracle_rank(squares, energy)
    assert float(theta.sum()) >= energy * float(squares.sum())
    assert torch.allclose(C.T @ C, torch.eye(theta.numel(), dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("energy", [0.5, 0.7, 0.8])
@pytest.mark.parametrize("width", [0.0, 1e-8, 1e-2])
@pytest.mark.parametrize("count", [12, 30, 60])
@pytest.mark.parametrize("tail", [0.01, 0.5])
def test_more_equal_values_than_a_block_sees_are_never_overlooked(
    energy: float, width: float, count: int, tail: float
) -> None:
    # Where the iteration finds only some of them, it must notice and leave the work to the full eigenproblem.
    draw = generator(count)
    top = 1 - width * torch.rand(count, generator=draw, dtype=torch.float64)
    rest = tail / torch.arange(1, SIZE - count + 1, dtype=torch.float64)
    squares = torch.cat([top, rest]).sort(descending=True).values
    Q = orthonormal(SIZE, SIZE, draw)
    found = leading_pairs(Q * squares @ Q.T, None, energy=energy, total_energy=float(squares.sum()))
    if found is not None:
        p = oracle_rank(squares, energy)
        assert found[0].numel() == p
        shortfall = float(squares[:p].sum() - found[0].sum())
        assert shortfall <= 1e-2 * (1 - energy) * float(squares.sum())


@pytest.mark.parametrize("energy", [0.5, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shared_A", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_stacks_of_trained_adapters(energy: float, dtype: torch.dtype, shared_A: bool, seed: int) -> None:
    # With one A for all clients, G_A is singular: 8 of its 320 eigenvalues are not zero.
    factor = federation(40, 8, seed=seed, shared_A=shared_A)
    G_B, G_A, squares = pair(factor, dtype)
    found = leading_pairs(G_B, G_A, energy=energy, total_energy=float(squares.sum()))
    assert found is not None
    theta, C = found
    p = oracle_rank(squares, energy)
    assert theta.numel() == p
    best = float(squares[:p].sum())
    # What is kept is the best of its rank, to a fraction of what is discarded.
    assert best - float(theta.sum()) <= 2e-4 * (1 - energy) * float(squares.sum())
    V = factor.A.T @ C.double()
    assert torch.allclose(V.T @ V, torch.eye(p, dtype=torch.float64), atol=1e-4 if dtype == torch.float32 else 1e-9)
    projected = (factor.B @ (factor.A @ V)).square().sum()
    assert float(projected) == pytest.approx(float(theta.sum()), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("energy", [0.9, 0.99, 0.999])
def test_a_basis_that_is_exhausted_ends_well(energy: float, dtype: torch.dtype) -> None:
    # One A of rank 40 for 8 clients: the third block of 16 finds 8 directions, and nothing is left for a fourth.
    factor = federation(8, 40, shared_A=True)
    G_B, G_A, squares = pair(factor, dtype)
    found = leading_pairs(G_B, G_A, energy=energy, total_energy=float(squares.sum()))
    assert found is not None
    assert found[0].numel() == oracle_rank(squares, energy)
    assert torch.allclose(found[0], squares[: found[0].numel()], rtol=1e-3)


def test_a_flat_spectrum_is_left_to_the_full_eigenproblem() -> None:
    G_B, G_A, squares = pair(gaussian(400, 400, SIZE), torch.float64)
    assert leading_pairs(G_B, G_A, energy=0.9, total_energy=float(squares.sum())) is None


def test_equal_inputs_give_equal_results() -> None:
    G_B, G_A, squares = pair(federation(40, 8), torch.float64)
    torch.manual_seed(1)
    first = leading_pairs(G_B, G_A, energy=0.8, total_energy=float(squares.sum()))
    torch.manual_seed(2)
    second = leading_pairs(G_B, G_A, energy=0.8, total_energy=float(squares.sum()))
    assert first is not None
    assert second is not None
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("scale", [2.0**-40, 1.0, 2.0**40])
@pytest.mark.parametrize("known", [0, 5, 20])
@pytest.mark.parametrize("with_identity", [False, True])
def test_the_largest_value_that_a_basis_misses_is_estimated_from_above(
    with_identity: bool, known: int, scale: float
) -> None:
    size, draw = 60, generator(known)
    Q = orthonormal(size, size, draw)
    G_B = scale * (Q * falling(1e4, size) @ Q.T)
    G_A = None if with_identity else gram_matrix(torch.randn(size, 90, generator=draw).double() / 10, torch.float64)
    pairs = eigenpairs(G_B, G_A, energy=1.0, floor=0.0)
    C = pairs.C[:, :known]
    estimate = _largest_outside(G_B, G_A, C, C if G_A is None else G_A @ C, draw)
    exact = float(pairs.squares[known])
    # A Rayleigh quotient is never above the largest value, and the estimate is 1.5 times the largest of them.
    assert exact <= estimate <= 1.5 * exact * (1 + 1e-9)


def test_a_matrix_that_is_zero_but_for_rounding_has_no_value_below_zero() -> None:
    # Its square root is taken, and would be complex.
    assert _largest(torch.diag(torch.tensor([-1e-20, -1e-18]))) == 0
    assert _largest(torch.diag(torch.tensor([-3.0, 2.0]))) == 2


@pytest.mark.parametrize(
    ("target", "residual", "delta", "allowance", "rank"),
    [
        (1.2, 1e-6, 0.3, 1e-4, 2),
        (1.0 + 1e-7, 1e-6, 0.3, 1e-4, None),  # the first value may be larger than it was found, and do alone
        (1.2, 1e-6, 0.5, 1e-4, None),  # what was not seen may be as large as the second value
        (1.2, 1e-6, 0.3, 1e-6, None),  # the best two may hold more than is allowed to be missing
        (1.7, 1e-6, 0.0, 1e-4, None),  # all that was found is not enough
        (0.9, 1e-6, 0.3, 1e-4, 1),
    ],
)
def test_a_rank_is_certified_only_where_the_bounds_prove_it(
    target: float, residual: float, delta: float, allowance: float, rank: int | None
) -> None:
    theta = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    assert _certified_rank(theta, torch.full_like(theta, residual), delta, target, allowance) == rank
