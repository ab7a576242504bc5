"""The algebra of factors: singular value decompositions of ``B @ A`` without the product, with one solver a file."""

from florist.linalg.accumulate import WeightedFactor
from florist.linalg.ordered import ordered_spectrum
from florist.linalg.qr import qr_svd
from florist.linalg.residual import cut_norms, residual_norm
from florist.linalg.routes import NonFinitePartError, OverflowingSumError, decompose, decompose_dense
from florist.linalg.thin_svd import ThinSvd

__all__ = [
    "NonFinitePartError",
    "OverflowingSumError",
    "ThinSvd",
    "WeightedFactor",
    "cut_norms",
    "decompose",
    "decompose_dense",
    "ordered_spectrum",
    "qr_svd",
    "residual_norm",
]
