"""The mean of B and the mean of A, each on its own, and what their product lacks of the exact sum."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from florist.aggregation.updates import weighted_factors
from florist.factors import LoraFactor, stack
from florist.rounds import ClientUpdate


@dataclass(frozen=True, slots=True, eq=False)
class AveragedHalves:
    """What averaging B and A of K clients gives, each on its own.

    Attributes:
        mean: the mean of the halves, of the clients' largest rank r, in the dtype of the updates.
        residual: what the product of the means lacks of the exact sum, of rank K r, in float64.
        magnitude: the mean of the halves' magnitudes, in float64. The rounding of the mean is proportional to it, and
            where clients cancel, it is far larger than the mean.
    """

    mean: LoraFactor
    residual: LoraFactor
    magnitude: LoraFactor


def averaged_halves(updates: Sequence[ClientUpdate], module: str) -> AveragedHalves:
    """The mean of the halves, and what the product of the means lacks of the exact sum.

    Halves are padded with zeros to the largest rank r, and both halves of a client without the module are zero. Since
    the weights sum to one, the residual needs no difference of nearly equal products::

        sum_k w_k B_k A_k - mean(B) mean(A) = sum_k w_k (B_k - mean(B)) (A_k - mean(A))

    Raises:
        NonFiniteUpdateError: a factor holds NaN or infinity. The message names the client and the module.

    Cost: O(K r (m + n)).
    """
    weighted = weighted_factors(updates, module)
    rank, dtype = max(factor.rank for _, factor in weighted), weighted[0][1].B.dtype
    padded = [(weight, factor.padded(rank).to(dtype=torch.float64)) for weight, factor in weighted]
    B = torch.stack([weight * factor.B for weight, factor in padded])
    A = torch.stack([weight * factor.A for weight, factor in padded])
    mean, magnitude = LoraFactor(B.sum(dim=0), A.sum(dim=0)), LoraFactor(B.abs().sum(dim=0), A.abs().sum(dim=0))
    residual = stack([LoraFactor(weight * (factor.B - mean.B), factor.A - mean.A) for weight, factor in padded])
    return AveragedHalves(mean.to(dtype=dtype), residual, magnitude)


def exact_stack(updates: Sequence[ClientUpdate], module: str) -> LoraFactor:
    """``sum_k w_k B_k A_k`` as one factor in float64, with the weights folded into B.

    Raises:
        NonFiniteUpdateError: a factor holds NaN or infinity. The message names the client and the module.
    """
    return stack([f.to(dtype=torch.float64).scaled(w) for w, f in weighted_factors(updates, module)])
