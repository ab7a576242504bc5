"""The mean of B and the mean of A, each on its own, and what their product lacks of the exact sum."""

from collections.abc import Sequence

import torch

from florist.aggregation.updates import weighted_factors
from florist.factors import LoraFactor, stack
from florist.rounds import ClientUpdate


def mean_and_residual(updates: Sequence[ClientUpdate], module: str) -> tuple[LoraFactor, LoraFactor]:
    """The mean of the halves, and the residual: what the product of the means lacks of the exact sum.

    Halves are padded with zeros to the largest rank r, and both halves of a client without the module are zero. Since
    the weights sum to one, the residual needs no difference of nearly equal products::

        sum_k w_k B_k A_k - mean(B) mean(A) = sum_k w_k (B_k - mean(B)) (A_k - mean(A))

    Returns:
        The mean, of rank r in the dtype of the updates; the residual, of rank K r for K clients, in float64.

    Raises:
        NonFiniteUpdateError: a factor holds NaN or infinity. The message names the client and the module.

    Cost: O(K r (m + n)).
    """
    weighted = weighted_factors(updates, module)
    rank, dtype = max(factor.rank for _, factor in weighted), weighted[0][1].B.dtype
    padded = [(weight, factor.padded(rank).to(dtype=torch.float64)) for weight, factor in weighted]
    B = torch.stack([weight * factor.B for weight, factor in padded]).sum(dim=0)
    A = torch.stack([weight * factor.A for weight, factor in padded]).sum(dim=0)
    residual = stack([LoraFactor(weight * (factor.B - B), factor.A - A) for weight, factor in padded])
    return LoraFactor(B, A).to(dtype=dtype), residual


def exact_stack(updates: Sequence[ClientUpdate], module: str) -> LoraFactor:
    """``sum_k w_k B_k A_k`` as one factor in float64, with the weights folded into B.

    Raises:
        NonFiniteUpdateError: a factor holds NaN or infinity. The message names the client and the module.
    """
    return stack([f.to(dtype=torch.float64).scaled(w) for w, f in weighted_factors(updates, module)])
