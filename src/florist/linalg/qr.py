"""The reference solver, by thin QRs of both halves and the SVD of the small core."""

import torch
from jaxtyping import Float64
from torch import Tensor

from florist.errors import NonFiniteUpdateError
from florist.factors import LoraFactor
from florist.linalg.spectrum import Spectrum, known_energy
from florist.linalg.thin_svd import ThinSvd, rounding_floor, working_dtype


def qr_svd(factor: LoraFactor, weights: Float64[Tensor, " rank"] | None = None) -> ThinSvd:
    """Compute the thin SVD of ``B @ diag(weights) @ A`` without forming the product.

    With thin QRs ``B = Q_b R_b`` and ``A.T = Q_a R_a``, the product is ``Q_b (R_b R_a.T) Q_a.T``: the SVD of the
    small core, rotated by ``Q_b`` and ``Q_a``, is the SVD of the product. Nothing is truncated.

    Args:
        factor: ``B`` (m, r) and ``A`` (r, n); ``r`` may exceed m or n, as it does after many clients are stacked.
        weights: The weights of the r components; without them, each is 1.

    Returns:
        The k = min(m, n, r) directions, in float64 for float64 factors and else in float32. The signs of singular
        vectors are arbitrary.

    Raises:
        NonFiniteUpdateError: A factor holds NaN or infinity.

    Cost: O((m + n) r^2 + r^3) where r <= min(m, n).

    Source: FLoRIST, arXiv:2506.09199, eq. 2, which takes an SVD of each stack; QR gives the same product for less.
    """
    factor = factor.to(dtype=working_dtype(factor.B.dtype))
    B, A = factor.B, factor.A
    if weights is not None:
        B = B * weights.to(B)
    Q_b, R_b = torch.linalg.qr(B)
    Q_a, R_a = torch.linalg.qr(A.T)
    if not bool(torch.isfinite(R_b).all() & torch.isfinite(R_a).all()):
        raise NonFiniteUpdateError(
            f"expected finite factors, got NaN or infinity in B {tuple(B.shape)} or A {tuple(A.shape)}"
        )
    U, S, Vh = torch.linalg.svd(R_b @ R_a.T, full_matrices=False)
    # Householder QR and the SVD of the core are backward stable: values are off by a few eps of the largest term,
    # which exceeds the largest singular value where terms cancel.
    terms = R_b.square().sum(dim=0) * R_a.square().sum(dim=0)
    noise = 4 * torch.finfo(B.dtype).eps * float(terms.sum(dtype=torch.float64).sqrt())
    largest = float(S[0]) if S.numel() else 0.0
    resolution = max(rounding_floor(B.dtype), noise / largest) if largest else rounding_floor(B.dtype)
    known_from = known_energy(0.0, float(terms.sum(dtype=torch.float64)), B.dtype)
    spectrum = Spectrum(S.double().cpu(), resolution, factor.spec.shape, known_from=known_from)
    return ThinSvd(spectrum, Q_b, U, Vh, Q_a.T)
