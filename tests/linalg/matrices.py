"""Factors with chosen spectra, and the dense float64 oracle that every solver is held against."""

import torch
from torch import Tensor

from florist.factors import LoraFactor
from florist.linalg import ThinSvd, WeightedFactor


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(m: int, n: int, rank: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> LoraFactor:
    """Independent normal halves: the flattest spectrum."""
    draw = generator(seed)
    B = torch.randn(m, rank, generator=draw, dtype=torch.float64) / m**0.5
    A = torch.randn(rank, n, generator=draw, dtype=torch.float64) / n**0.5
    return LoraFactor(B.to(dtype), A.to(dtype))


def with_spectrum(
    S: Tensor, m: int, n: int, *, gauge: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float64
) -> LoraFactor:
    """Factors of ``U diag(S) Vh`` in a random gauge ``(B G, G^-1 A)`` of condition number `gauge`."""
    draw, rank = generator(seed), S.numel()
    U, V, left, right = (orthonormal(size, rank, draw) for size in (m, n, rank, rank))
    root, G = S.double().sqrt(), left * falling(gauge, rank) @ right.T
    return LoraFactor((U * root @ G).to(dtype), (torch.linalg.inv(G) @ (root[:, None] * V.T)).to(dtype))


def orthonormal(size: int, columns: int, draw: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(size, columns, generator=draw, dtype=torch.float64))[0]


def falling(condition: float, count: int) -> Tensor:
    """From 1 down to 1 / condition, equal steps in the logarithm."""
    return torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), count, dtype=torch.float64)


def as_part(factor: LoraFactor, weight: float = 1.0) -> WeightedFactor:
    return WeightedFactor(weight, factor.spec, lambda: factor)


def dense(*parts: WeightedFactor) -> Tensor:
    """The sum in float64."""
    products = [part.weight * part.read().to(dtype=torch.float64).delta_weight() for part in parts]
    return torch.stack(products).sum(dim=0)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def reconstruction(svd: ThinSvd) -> Tensor:
    return svd.factor(svd.S.numel()).to(dtype=torch.float64).delta_weight()


def oracle_rank(squares: Tensor, energy: float) -> int:
    """The smallest rank that holds the fraction."""
    return int((torch.cumsum(squares, dim=0) < energy * squares.sum()).sum()) + 1
