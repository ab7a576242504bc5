"""Spectra of factors that came out of a decomposition, which are read off instead of computed again."""

import torch
from torch import Tensor

from florist.errors import InvalidAdapterError
from florist.factors import LoraFactor
from florist.linalg.spectrum import Spectrum

# How much components may overlap, relative to the largest. Decompositions in float32 stay below 1e-4; rows that are
# drawn at random are at 1/sqrt(in_features).
_TOLERANCE = 1e-3


@torch.no_grad()
def ordered_spectrum(factor: LoraFactor) -> Spectrum:
    """Return the singular values of a factor whose components are those of its decomposition, the largest first.

    `ThinSvd.factor` and `aggregation.lossless_sum` return such factors, with the singular values split evenly over B
    and A. Component i is ``S_i U_i V_i^T`` with ``S_i = ||B[:, i]|| ||A[i, :]||``, and the first p components are the
    best approximation of rank p (Eckart and Young, 1936).

    Args:
        factor: A factor whose components are orthogonal in both halves, the largest first; this is checked.

    Returns:
        The norms of all components. Each that is not zero counts as resolved, because the decomposition has left out
        what is below the rounding.

    Raises:
        InvalidAdapterError: The components are not orthogonal, or they are not in descending order.

    Cost: O((m + n) r^2) in float64, for the check.
    """
    B, A = factor.B.double(), factor.A.double()
    S = (B.norm(dim=0) * A.norm(dim=1)).cpu()
    descending = S.numel() == 0 or bool((S.diff() <= _TOLERANCE * S[0]).all())
    if not (descending and _orthogonal(B.T @ B) and _orthogonal(A @ A.T)):
        raise InvalidAdapterError(
            "expected a factor as a singular value decomposition gives it, with orthogonal components and the largest "
            "first, and its components are not; decompose it first, with aggregation.lossless_sum for instance"
        )
    return Spectrum(S, resolution=0.0, shape=factor.spec.shape)


def _orthogonal(gram: Tensor) -> bool:
    if gram.numel() == 0:
        return True
    diagonal = gram.diagonal()
    return bool(((gram - diagonal.diag()).abs() <= _TOLERANCE * diagonal.max()).all())
