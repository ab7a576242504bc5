"""The fast solver, by two Gram matrices, one small symmetric eigenproblem, and thin products for what is kept."""

import torch
from jaxtyping import Float64
from torch import Tensor

from florist.errors import NonFiniteUpdateError
from florist.factors import LoraFactor
from florist.linalg.eigenpairs import eigenpairs, fit_float32, gram_matrix
from florist.linalg.spectrum import Spectrum, known_energy
from florist.linalg.thin_svd import ThinSvd, rounding_floor


def gram_svd(
    factor: LoraFactor,
    weights: Float64[Tensor, " rank"] | None = None,
    *,
    energy: float = 1.0,
    gram_dtype: torch.dtype = torch.float64,
) -> ThinSvd:
    """Compute the SVD of ``B @ diag(weights) @ A`` by way of ``G_B = B^T B`` and ``G_A = A A^T``.

    A right singular vector lies in the row space, ``v = A^T c``, and ``dW^T dW v = sigma^2 v`` says that
    ``G_B G_A c = sigma^2 c``. With a Cholesky factor ``G_B = L L^T`` this is the symmetric eigenproblem of
    ``L^T G_A L``, of size R. The left vector is ``dW v / sigma = B G_A c / sigma``: nothing ill-conditioned is
    inverted, and ``U diag(S) Vh = dW V V^T`` is a projection of the update whatever the rounding.

    The weights enter the R x R matrices, not the factors, and the columns of B and the rows of A are balanced there:
    neither the weights nor the scale at which a client keeps its two halves costs digits.

    Squaring costs digits: a squared singular value is known to about eps ``||G_B|| ||G_A||``. A singular value is
    therefore known to about 1e-8 of the largest with float64 Gram matrices and to 1e-3 with float32 ones, and less
    precisely where the halves are far larger than their product. The `resolution` of the result says how precisely
    these very factors are resolved.

    Args:
        factor: ``B`` (m, R) and ``A`` (R, n).
        weights: The weights of the R components; without them, each is 1.
        energy: The fraction of the energy that the result must hold; 1 asks for everything that can be resolved.
        gram_dtype: The precision of the Gram matrices. Where its resolution will do, float32 more than halves the cost
            of the products. Squares that float32 cannot hold are formed in float64 all the same.

    Returns:
        The directions that hold `energy`, in the precision of `factor`.

    Raises:
        NonFiniteUpdateError: A factor holds NaN or infinity, or its squares overflow float64.

    Cost: O((m + n) R^2 + R^3), and O((m + n) R p) for the p directions that are formed.

    Source: The Gram route is Sirovich's method of snapshots (1987), here for a product. The shift that lets a Cholesky
    factorisation succeed on a singular matrix is from Fukaya et al., SIAM J. Sci. Comput. 42 (2020).
    """
    G_B, G_A = gram_matrix(factor.B.T, gram_dtype), gram_matrix(factor.A, gram_dtype)
    squares_B, squares_A = G_B.diagonal().double(), G_A.diagonal().double()
    if gram_dtype == torch.float32 and not fit_float32(squares_B, squares_A):
        return gram_svd(factor, weights, energy=energy)
    if not bool(torch.isfinite(squares_B + squares_A).all()):
        raise NonFiniteUpdateError(
            f"expected finite factors, got NaN or infinity in the squares of B {tuple(factor.B.shape)} or of "
            f"A {tuple(factor.A.shape)}"
        )
    scale_B, scale_A = _balance(squares_B, squares_A, weights)
    for G, scale in ((G_B, scale_B.to(gram_dtype)), (G_A, scale_A.to(gram_dtype))):
        G.mul_(scale).mul_(scale[:, None])
    pairs = eigenpairs(G_B, G_A, energy=energy, floor=rounding_floor(factor.B.dtype))
    S = pairs.squares.sqrt()
    return ThinSvd(
        spectrum=Spectrum(
            S.cpu(),
            pairs.resolution,
            factor.spec.shape,
            pairs.tail_energy,
            known_from=known_energy(pairs.noise, pairs.size, factor.B.dtype),
        ),
        left=factor.B,
        X=scale_B[:, None] * (G_A @ pairs.C) / S,
        Y=(scale_A[:, None] * pairs.C).T,
        right=factor.A,
    )


def _balance(squares_B: Tensor, squares_A: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return scales for the columns of B and the rows of A that give both equal norms and multiply to the weight.

    A component that is zero in one half, or too small to be told from zero, is scaled to zero in both halves, because
    it could only add rounding.
    """
    weights = torch.ones_like(squares_B) if weights is None else weights.to(squares_B)
    ratio = ((squares_A / squares_B).sqrt() / weights.abs()).sqrt()
    alive = torch.isfinite(ratio) & (ratio > 0)
    return torch.where(alive, weights * ratio, 0.0), torch.where(alive, 1 / ratio, 0.0)
