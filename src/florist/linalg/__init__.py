"""Factor-space algebra: the singular value decomposition of ``B @ A`` from the factors, one solver a file."""

from florist.linalg.qr import qr_svd
from florist.linalg.thin_svd import ThinSvd

__all__ = ["ThinSvd", "qr_svd"]
