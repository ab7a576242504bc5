"""The leading directions of a large stack, by a randomized block Lanczos iteration up to a certified energy."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

_SEED = 2506
# With a basis larger than this fraction of R, the full eigenproblem is about as cheap.
_LARGEST_BASIS = 0.4
_PROBES = 16
_PROBE_STEPS = 3
# The energy in the kept directions may fall short of the best possible by this fraction of what is discarded.
_SHORTFALL = 1e-4


def leading_pairs(
    G_B: Float[Tensor, "rank rank"],
    G_A: Float[Tensor, "rank rank"] | None,
    *,
    energy: float,
    total_energy: float,
) -> tuple[Float64[Tensor, " k"], Float[Tensor, "rank k"]] | None:
    """Return as many leading solutions of ``G_B G_A c = sigma^2 c`` as hold a fraction of the energy.

    The iteration works on the R x R Gram matrices, where a product with the update costs R / (m + n) of what it costs
    on the stacks. From a block of random vectors, each step multiplies the newest block by ``H = G_B G_A`` and
    orthonormalises it against the basis in the inner product of `G_A`, in which H is symmetric. The eigenvalues theta
    of H projected on the basis approach sigma^2 from below.

    The energy that the projected directions hold is exactly the sum of their theta: enough is held as soon as
    ``sum(theta) >= energy * total_energy``. To prove that no smaller rank would do takes a bound from above. H maps the
    basis out of itself only through the newest block. With r_i the part of ``H c_i`` outside the basis, and delta the
    largest eigenvalue of H outside it, the largest j of the sigma^2 sum to at most ``sum_{i<=j} theta_i + ||r_i||^2 /
    (theta_j - delta)``. Steps go on until this bound fixes the rank and the shortfall against the best is negligible.

    Delta is estimated from the newest block as its largest projected eigenvalue plus twice its coupling to the next
    block, which bounds a block tridiagonal matrix whose blocks do not grow. The iteration cannot see more equal values
    than a block has columns. Before it is believed, a power iteration from fresh random vectors therefore looks for
    what was missed. This makes the rank right with overwhelming probability, not with certainty.

    The start is drawn from a fixed seed, so that equal inputs give equal results.

    Args:
        G_B: A symmetric, positive semidefinite matrix.
        G_A: Another one; None stands for the identity.
        energy: The fraction to hold, below 1.
        total_energy: The sum of all sigma^2, which is ``sum(G_B * G_A)``.

    Returns:
        The sigma^2, non-increasing, and the vectors c as columns with ``C^T G_A C = I``; or None where the spectrum is
        so flat that the full eigenproblem is cheaper.

    Cost: O(R^2 d) for a basis of d vectors, which is 2 to 3 times the rank that holds `energy`.

    Source: Musco and Musco, arXiv:1504.05477, for block Lanczos from a random start; the bound comes from the Schur
    complement.
    """
    R = G_B.shape[0]
    target, largest_basis = energy * total_energy, int(R * _LARGEST_BASIS)
    C = G_B.new_empty(R, largest_basis)
    W = torch.empty_like(C)  # G_A @ C
    T = G_B.new_zeros(largest_basis, largest_basis)  # C^T G_A H C
    generator = torch.Generator().manual_seed(_SEED)
    columns = 12 * -(-R // 512)  # about R / 40: wide enough for fast products, narrow enough for many steps
    block = _orthonormalise(torch.randn(R, columns, generator=generator).to(G_B), G_A)
    end = 0
    while block.C.shape[1] > 0 and end + block.C.shape[1] <= largest_basis:
        newest = slice(end, end + block.C.shape[1])
        end = newest.stop
        C[:, newest], W[:, newest] = block.C, block.W
        Z = G_B @ block.W
        T[:end, newest] = W[:, :end].T @ Z
        T[newest, :end] = T[:end, newest].T
        Z -= C[:, :end] @ T[:end, newest]
        Z -= C[:, :end] @ (W[:, :end].T @ Z)  # one projection leaves rounding, two are enough
        block = _orthonormalise(Z, G_A)
        # Where H maps the block into the basis alone, what is left of it is rounding and points anywhere.
        stray = W[:, :end].T @ block.C
        if float(torch.linalg.norm(stray)) > 1e3 * torch.finfo(C.dtype).eps:
            block = replace(_orthonormalise(block.C - C[:, :end] @ stray, G_A), squares=block.squares)

        projected, coupling = T[:end, :end], block.squares
        held = float(projected.trace())
        delta = _largest(T[newest, newest]) + 2 * _largest(coupling) ** 0.5
        delta = min(delta, max(total_energy - held, 0.0))
        if held < target:
            # Each direction that is still missing holds at most delta, and as a rule a third of it.
            if end + 3 * (target - held) / max(delta, total_energy / R) > largest_basis:
                return None
            continue
        theta, Y = torch.linalg.eigh(projected)
        theta, Y = theta.flip(0).clamp(min=0).double(), Y.flip(1)
        outside = Y[newest]
        residuals = (outside * (coupling @ outside)).sum(dim=0).clamp(min=0).double()
        allowance = _SHORTFALL * (1 - energy) * total_energy
        p = _certified_rank(theta, residuals, delta, target, allowance)
        if p is None:
            continue
        missed = _largest_outside(G_B, G_A, C[:, :end], W[:, :end], generator)
        if _certified_rank(theta, residuals, max(delta, missed), target, allowance) is not None:
            return theta[:p], C[:, :end] @ Y[:, :p]
    return None


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """A block C with ``W = G_A @ C`` and ``C^T W = I``; ``squares = X^T G_A X`` for the vectors X that it came from."""

    C: Float[Tensor, "rank block"]
    W: Float[Tensor, "rank block"]
    squares: Float[Tensor, "columns columns"]


def _orthonormalise(X: Tensor, G_A: Tensor | None) -> _Block:
    """Orthonormalise X in the inner product of `G_A`, and drop directions that `G_A` maps to rounding noise."""
    Q, R = torch.linalg.qr(X)
    if G_A is None:
        return _Block(Q, Q, R.T @ R)
    W = G_A @ Q
    gram = Q.T @ W
    lengths, basis = torch.linalg.eigh(gram)
    real = lengths > _null(G_A, X.dtype)
    basis = basis[:, real] / lengths[real].sqrt()
    return _Block(Q @ basis, W @ basis, R.T @ gram @ R)


def _certified_rank(theta: Tensor, residuals: Tensor, delta: float, target: float, allowance: float) -> int | None:
    """Return the smallest rank that holds `target`, or None where the bound of `leading_pairs` does not prove it."""
    held = torch.cumsum(theta, dim=0)
    p = min(int((held < target).sum()) + 1, theta.numel())
    gap = float(theta[p - 1]) - delta
    if gap <= 0 or float(held[-1]) < target:
        return None
    upper = torch.cumsum(theta[:p] + residuals[:p] / gap, dim=0)
    no_less_will_do = p == 1 or float(upper[p - 2]) < target
    return p if no_less_will_do and float(upper[p - 1] - held[p - 1]) <= allowance else None


def _largest_outside(G_B: Tensor, G_A: Tensor | None, C: Tensor, W: Tensor, generator: torch.Generator) -> float:
    """Estimate the largest eigenvalue of ``G_B G_A`` outside the span of `C`, rather too large than too small."""
    X = torch.randn(G_B.shape[0], _PROBES, generator=generator).to(G_B)
    quotients = X.new_zeros(_PROBES)
    for _ in range(_PROBE_STEPS):
        X -= C @ (W.T @ X)
        X /= torch.linalg.norm(X, dim=0).clamp(min=torch.finfo(X.dtype).tiny)
        W_X = X if G_A is None else G_A @ X
        Z = G_B @ W_X
        # These are Rayleigh quotients in the inner product of G_A, for the vectors that have a length in it.
        lengths = (X * W_X).sum(dim=0)
        quotients = torch.where(lengths > _null(G_A, X.dtype), (W_X * Z).sum(dim=0) / lengths, 0.0)
        X = Z
    return 1.5 * max(float(quotients.max()), 0.0)


def _null(G_A: Tensor | None, dtype: torch.dtype) -> float:
    """Return the squared length, in the inner product of `G_A`, up to which a unit vector is nothing but rounding."""
    return 0.0 if G_A is None else 100 * torch.finfo(dtype).eps * float(torch.linalg.norm(G_A))


def _largest(X: Tensor) -> float:
    return max(float(torch.linalg.eigvalsh(X)[-1]), 0.0)
