"""Solvers for a dense update, for the case that the stack of all components is larger than the weight itself."""

import torch
from jaxtyping import Float
from torch import Tensor

from florist.errors import NonFiniteUpdateError
from florist.linalg.eigenpairs import eigenpairs, fit_float32, gram_matrix
from florist.linalg.spectrum import Spectrum, known_energy
from florist.linalg.thin_svd import ThinSvd, rounding_floor


def dense_gram_svd(
    W: Float[Tensor, "out_features in_features"], *, energy: float = 1.0, gram_dtype: torch.dtype = torch.float64
) -> ThinSvd:
    """Compute the SVD of a dense update by way of the Gram matrix of its smaller side.

    The left vectors come from ``W W^T = U diag(S^2) U^T``, the right ones are ``Vh = S^-1 U^T W``. Singular values
    below about 1e-8 of the largest (1e-3 with a float32 Gram matrix) drown in rounding, as they do in `gram_svd`.

    Args:
        W: The update.
        energy: The fraction of the energy that the result must hold; 1 asks for everything that can be resolved.
        gram_dtype: The precision of the Gram matrix.

    Raises:
        NonFiniteUpdateError: `W` holds NaN or infinity, or its squares overflow float64.

    Cost: O(m n min(m, n)), and the full or the leading eigenproblem of size min(m, n); `dense_svd` takes many times
    that.
    """
    if W.shape[0] > W.shape[1]:
        return dense_gram_svd(W.T, energy=energy, gram_dtype=gram_dtype).transposed()
    G = gram_matrix(W, gram_dtype)
    squares = G.diagonal().double()
    if gram_dtype == torch.float32 and not fit_float32(squares, torch.ones_like(squares)):
        return dense_gram_svd(W, energy=energy)
    _require_finite(squares, W)
    pairs = eigenpairs(G, None, energy=energy, floor=rounding_floor(W.dtype))
    S = pairs.squares.sqrt()
    return ThinSvd(
        spectrum=Spectrum(
            S.cpu(),
            pairs.resolution,
            (W.shape[0], W.shape[1]),
            pairs.tail_energy,
            known_from=known_energy(pairs.noise, pairs.size, W.dtype),
        ),
        left=pairs.C.to(W.dtype),
        X=None,
        Y=(pairs.C / S).T,
        right=W,
    )


def dense_svd(W: Float[Tensor, "out_features in_features"]) -> ThinSvd:
    """Compute LAPACK's SVD of a dense update: every singular value to the precision of `W`, at the highest cost.

    Raises:
        NonFiniteUpdateError: `W` holds NaN or infinity.

    Cost: O(m n min(m, n)), which takes 20 to 30 times as long as a matrix product of that size.
    """
    _require_finite(W.abs().amax(dim=0), W)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    energy = float(S.double().square().sum())
    spectrum = Spectrum(
        S.double().cpu(),
        rounding_floor(W.dtype),
        (W.shape[0], W.shape[1]),
        known_from=known_energy(0.0, energy, W.dtype),
    )
    return ThinSvd(spectrum, U, None, None, Vh)


def _require_finite(values: Tensor, W: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteUpdateError(f"expected a finite update, got NaN or infinity in W {tuple(W.shape)}")
