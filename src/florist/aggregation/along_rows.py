"""The sum of updates whose clients train B alone, along the same rows of A."""

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from florist.aggregation.updates import weighted_factors
from florist.errors import InvalidUpdateError
from florist.factors import LoraFactor
from florist.rounds import ClientUpdate


def sum_along_rows(updates: Sequence[ClientUpdate], module: str) -> tuple[LoraFactor, Float64[Tensor, "m rank"]]:
    """``sum_k w_k B_k A_k = (sum_k w_k B_k) A``, which is exact while all clients hold the same A.

    A client of smaller rank holds the first rows of A, and its B counts as zero in the others.

    Returns:
        The sum, of the largest rank of a client and in the dtype of the updates; and its B in float64, before rounding.

    Raises:
        InvalidUpdateError: two clients differ in a row of A.
        NonFiniteUpdateError: a factor holds NaN or infinity. The message names the client and the module.

    Cost: O(K r (m + n)) for K clients.
    """
    weighted = weighted_factors(updates, module)
    A = _common_rows(updates, module, [factor for _, factor in weighted])
    B = torch.zeros(weighted[0][1].B.shape[0], A.shape[0], dtype=torch.float64, device=A.device)
    for weight, factor in weighted:
        B[:, : factor.rank] += weight * factor.B.double()
    return LoraFactor(B.to(A.dtype), A), B


def _common_rows(updates: Sequence[ClientUpdate], module: str, factors: Sequence[LoraFactor]) -> Tensor:
    longest = max(range(len(factors)), key=lambda k: factors[k].rank)
    for update, factor in zip(updates, factors, strict=True):
        if not torch.equal(factor.A, factors[longest].A[: factor.rank]):
            raise InvalidUpdateError(
                f"{module}: expected every client to hold the same rows of A, and {update.client_id!r} and "
                f"{updates[longest].client_id!r} differ; leave A untrained, and give all clients the same"
            )
    return factors[longest].A
