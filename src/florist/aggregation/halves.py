"""The mean of B and the mean of A, each on its own, and what that loses."""

from collections.abc import Sequence

import torch

from florist.aggregation.updates import weighted_factors
from florist.factors import LoraFactor, stack
from florist.rounds import ClientUpdate


def mean_of_halves(updates: Sequence[ClientUpdate], module: str) -> tuple[LoraFactor, LoraFactor]:
    """(the mean of the halves, what its product lacks of the exact sum).

    Halves are zero-padded to the largest rank, a client without the module is zero in both. The second factor is
    float64 and follows from the weights' sum of one, without the cancellation of a plain difference::

        sum_k w_k B_k A_k - mean(B) mean(A) = sum_k w_k (B_k - mean(B)) (A_k - mean(A))

    Its rank is K r for K clients of largest rank r.

    Raises:
        NonFiniteUpdateError: a factor holds NaN or infinity; names the client and the module.

    Cost: O(K r (m + n)).
    """
    weighted = weighted_factors(updates, module)
    rank, dtype = max(factor.rank for _, factor in weighted), weighted[0][1].B.dtype
    padded = [(weight, factor.padded(rank).to(dtype=torch.float64)) for weight, factor in weighted]
    B = torch.stack([weight * factor.B for weight, factor in padded]).sum(dim=0)
    A = torch.stack([weight * factor.A for weight, factor in padded]).sum(dim=0)
    lacking = stack([LoraFactor(weight * (factor.B - B), factor.A - A) for weight, factor in padded])
    return LoraFactor(B, A).to(dtype=dtype), lacking


def exact_stack(updates: Sequence[ClientUpdate], module: str) -> LoraFactor:
    """``sum_k w_k B_k A_k`` as one factor in float64, weights folded into B.

    Raises:
        NonFiniteUpdateError: a factor holds NaN or infinity; names the client and the module.
    """
    return stack([f.to(dtype=torch.float64).scaled(w) for w, f in weighted_factors(updates, module)])
