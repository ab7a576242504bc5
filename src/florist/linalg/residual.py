"""What a factor lacks of a weighted sum, from the stored numbers themselves, whatever the spectrum."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from florist.factors import LoraFactor
from florist.linalg.accumulate import WeightedFactor, stack_parts, sum_parts
from florist.linalg.spectrum import Spectrum

Parts = Callable[[], Sequence[WeightedFactor]]
"""A function that returns the parts of a sum. They are read anew, and only where they are needed."""


def cut_norms(
    parts: Parts, spectrum: Spectrum, kept: LoraFactor, values: Float64[Tensor, " p"] | None = None
) -> tuple[float, float]:
    """Return ``||dW||_F`` and ``||dW - B A||_F`` of a sum dW that was cut to a factor, both right to a relative 1e-3.

    The norm comes from the spectrum. So does the error where the discarded energy is far above the rounding, which it
    is for a usual threshold: its square root (Eckart and Young, 1936). Else `residual_norm` gives the error, which
    includes the rounding of the factor.

    Args:
        parts: The parts of dW.
        spectrum: What `linalg.decompose` found of dW.
        kept: The leading directions of that decomposition, in its precision.
        values: What they got in the place of their singular values; what they lost by it is in the error.

    Cost: none, or that of `residual_norm`.
    """
    norm, discarded = spectrum.total_energy**0.5, spectrum.discarded_energy(kept.rank)
    if values is not None:
        discarded += float((spectrum.S[: kept.rank] - values).square().sum())
    if discarded >= spectrum.known_from:
        return norm, discarded**0.5
    return norm, residual_norm(parts(), kept)


@torch.no_grad()
def residual_norm(parts: Sequence[WeightedFactor], sent: LoraFactor) -> float:
    """Return ``||sum_i weight_i B_i A_i - B A||_F`` of the stored numbers, in float64.

    The residual is itself a product of two stacks, ``[.., weight_i B_i, .., -B] [..; A_i; ..; A]``. A Gram matrix of a
    stack squares, and would lose a residual below 1e-8 of the sum; the triangular factors of both (QR) do not. Where
    the stacks are larger than the weight itself, the dense residual is summed up instead.

    Args:
        parts: At least one part; all have the shape of `sent`.
        sent: What is subtracted.

    Returns:
        The norm, off by no more than about 1e-15 of the norms of the parts.

    Cost: O((m + n) R^2) for R components of all parts and of `sent` together, or O(m n R); in float64.
    """
    minus = WeightedFactor(-1.0, sent.spec, lambda: sent)
    terms = [part for part in (*parts, minus) if part.weight != 0 and part.spec.rank > 0]
    if not terms:
        return 0.0
    if sum(part.spec.rank for part in terms) >= min(sent.spec.shape):
        return float(torch.linalg.norm(sum_parts(terms, torch.float64).W))
    stack = stack_parts(terms, torch.float64)
    R_b = torch.linalg.qr(stack.factor.B * stack.weights, mode="r")[1]
    R_a = torch.linalg.qr(stack.factor.A.T, mode="r")[1]
    return float(torch.linalg.norm(R_b @ R_a.T))
