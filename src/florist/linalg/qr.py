"""The reference solver: thin QR of both factors, then the SVD of the small core."""

import torch

from florist.factors import LoraFactor
from florist.linalg.thin_svd import ThinSvd, working_dtype


def qr_svd(factor: LoraFactor) -> ThinSvd:
    """Thin SVD of ``B @ A`` without forming the product.

    With thin QRs ``B = Q_b R_b`` and ``A.T = Q_a R_a``, the product is ``Q_b (R_b R_a.T) Q_a.T``: the SVD of the
    small core, rotated by ``Q_b`` and ``Q_a``, is the SVD of the product. Nothing is truncated.

    Args:
        factor: ``B`` (m, r) and ``A`` (r, n), finite; ``r`` may exceed m or n, as it does after stacking many
            clients.

    Returns:
        ``U`` (m, k), ``S`` (k,) non-increasing, ``Vh`` (k, n) with k = min(m, n, r); float32, or float64 for
        float64 factors. The signs of singular vectors are arbitrary.

    Cost: O((m + n) r^2 + r^3) when r <= min(m, n).
    Source: FLoRIST, arXiv:2506.09199, eq. 2, which takes an SVD of each stack; QR gives the same product for less.
    """
    dtype = working_dtype(factor.B.dtype)
    Q_b, R_b = torch.linalg.qr(factor.B.to(dtype))
    Q_a, R_a = torch.linalg.qr(factor.A.to(dtype).T)
    U, S, Vh = torch.linalg.svd(R_b @ R_a.T, full_matrices=False)
    # Householder QR and the core's SVD are backward stable: each value is off by a few eps of the largest.
    resolution = 8 * torch.finfo(dtype).eps
    return ThinSvd(Q_b @ U, S, Vh @ Q_a.T, resolution)
