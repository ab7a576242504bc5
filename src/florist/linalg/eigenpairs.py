"""The eigenproblem that the Gram matrices of a product pose, and how precisely it gives the singular values."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from florist.linalg.randomized import leading_pairs
from florist.linalg.spectrum import rank_holding

# So many columns are widened to float64 at a time: enough for an efficient product, few enough for the cache.
_CHUNK = 1024
# From this size on, to leave out the products below the diagonal pays for the calls that it takes. The matrix is then
# computed in 4 to 16 strips of about so many rows.
_SYMMETRY_PAYS = 96
# From this size on, the full eigenproblem costs more than the leading part of a spectrum that decays.
_RANDOMIZED_PAYS = 768


@dataclass(frozen=True, slots=True, eq=False)
class Eigenpairs:
    """The leading solutions of ``G_B G_A c = sigma^2 c``.

    Attributes:
        squares: The sigma^2, non-increasing.
        C: The vectors c as columns, with ``C^T G_A C = I``.
        resolution: The smallest sigma that can be told from zero, as a fraction of the largest.
        tail_energy: The sum of the other sigma^2.
        noise: What a sigma^2 may be off by.
        size: ``||G_B|| ||G_A||``, which exceeds the largest sigma^2 far where halves exceed their product.
    """

    squares: Float64[Tensor, " k"]
    C: Float[Tensor, "rank k"]
    resolution: float
    tail_energy: float
    noise: float
    size: float


def gram_matrix(X: Float[Tensor, "rank features"], dtype: torch.dtype) -> Float[Tensor, "rank rank"]:
    """Return ``X @ X.T`` in the given precision; where that is faster, only the part above the diagonal is computed.

    Cost: O(features rank^2) time; the memory of the result and of a slice of `X` in `dtype`.
    """
    rank, features = X.shape
    G = torch.empty(rank, rank, dtype=dtype, device=X.device)
    strips = min(max(rank // _SYMMETRY_PAYS, 4), 16) if rank >= _SYMMETRY_PAYS else 1
    height = max(-(-rank // strips), 1)
    width = max(features, 1) if X.dtype == dtype else _CHUNK
    for column in range(0, features, width):
        chunk = X[:, column : column + width].to(dtype)
        for row in range(0, rank, height):
            # With beta 0 the product overwrites, so that the first chunk needs no zeros to start from.
            G[row : row + height, row:].addmm_(chunk[row : row + height], chunk[row:].T, beta=min(column, 1))
    for row in range(height, rank, height):
        G[row : row + height, :row] = G[:row, row : row + height].T
    return G


def fit_float32(squares_B: Float64[Tensor, " rank"], squares_A: Float64[Tensor, " rank"]) -> bool:
    """Tell from squared column norms whether Gram matrices in float32 neither overflow nor lose terms to underflow."""
    largest = max(float(squares_B.max()), float(squares_A.max()))
    return largest < 1e15 and float((squares_B * squares_A).max()) > 1e-24 * max(largest, 1.0)


def eigenpairs(
    G_B: Float[Tensor, "rank rank"], G_A: Float[Tensor, "rank rank"] | None, *, energy: float, floor: float
) -> Eigenpairs:
    """Return as many leading pairs as hold a fraction of the energy, or all that can be resolved where it is 1.

    Args:
        G_B: A finite, symmetric, positive semidefinite matrix.
        G_A: Another one; None stands for the identity.
        energy: The fraction of ``sum(G_B * G_A)``, which is the sum of all sigma^2.
        floor: Values below this fraction of the largest sigma count as zero even where they can be resolved.

    Cost: O(R^3), and far less for a fraction of the energy of a large problem that decays, by `leading_pairs`.
    """
    diagonal = G_B.diagonal() if G_A is None else (G_B * G_A).sum(dim=0)
    total_energy = max(float(diagonal.sum(dtype=torch.float64)), 0.0)
    size = float(torch.linalg.norm(G_B)) * (1.0 if G_A is None else float(torch.linalg.norm(G_A)))
    if total_energy == 0:
        # Where the matrices are not zero, terms that cancel have drowned the whole sum in rounding.
        resolution = floor if size == 0 else math.inf
        return Eigenpairs(diagonal.double()[:0], G_B[:, :0], resolution, 0.0, torch.finfo(G_B.dtype).eps * size, size)
    leading = L = None
    if energy < 1 and G_B.shape[0] >= _RANDOMIZED_PAYS:
        leading = leading_pairs(G_B, G_A, energy=energy, total_energy=total_energy)
    if leading is not None:
        squares, Q = leading
    elif G_A is None:
        squares, Q = _descending(G_B)
    else:
        # With G_B = L L^T, the vectors q of the symmetric eigenproblem of L^T G_A L give c = L q / sigma.
        L = _square_root(G_B)
        squares, Q = _descending(L.T @ G_A @ L)
    largest = float(squares[0])
    # Measured: on spectra of condition 1e2 to 1e12, and with halves up to 1e6 times larger than their product, no
    # squared singular value was off by more. The eigensolver adds the first part, the Gram matrices add the second.
    noise = torch.finfo(G_B.dtype).eps * (16 * largest + 2 * size)
    resolution = max(floor, (noise / largest) ** 0.5) if largest > 0 else math.inf
    k = rank_holding(squares, energy=energy, total_energy=total_energy, resolution=resolution)
    squares, Q = squares[:k], Q[:, :k]
    C = Q if L is None else L @ Q / squares.sqrt().to(Q.dtype)
    return Eigenpairs(squares, C, resolution, max(total_energy - float(squares.sum()), 0.0), noise, size)


def _descending(G: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(G)
    return values.flip(0).clamp(min=0).double(), vectors.flip(1)


def _square_root(G: Tensor) -> Tensor:
    """Return L with ``L L^T = G`` to rounding, for a G that may be singular."""
    # With the shift, Cholesky's factorisation succeeds as a rule; it moves sigma^2 by no more than rounding does.
    shift = min(1.0, 4 / G.shape[0] ** 0.5) * torch.finfo(G.dtype).eps * torch.linalg.norm(G)
    L, failed = torch.linalg.cholesky_ex(G + shift * torch.eye(G.shape[0], dtype=G.dtype, device=G.device))
    if not bool(failed):
        return L
    values, vectors = torch.linalg.eigh(G)
    return vectors * values.clamp(min=0).sqrt()
