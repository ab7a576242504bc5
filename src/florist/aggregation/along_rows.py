"""The sum of updates whose clients train B alone, along the same rows of A."""

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from florist.aggregation.updates import client_weights, weighted_factors
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

    Cost: O(K r (m + n)) for K clients, in one pass.
    """
    holders = [
        (weight, update)
        for weight, update in zip(client_weights(updates), updates, strict=True)
        if module in update.adapter.specs
    ]
    specs = [update.adapter.specs[module] for _, update in holders]
    dtype = torch.float64 if any(spec.dtype == torch.float64 for spec in specs) else torch.float32
    longest = max(range(len(specs)), key=lambda k: specs[k].rank)
    A = holders[longest][1].adapter[module].A.to(dtype)
    B = torch.zeros(specs[longest].out_features, A.shape[0], dtype=torch.float64, device=A.device)
    unlike: list[str] = []
    for weight, update in holders:
        factor = update.adapter[module]
        B[:, : factor.rank] += weight * factor.B.double()
        if not torch.equal(factor.A.to(dtype), A[: factor.rank]):
            unlike.append(update.client_id)
    # NaN and infinity go into any sum that they are part of, which is cheaper to see than to look at each upload.
    if unlike or not (B.sum() + A.sum(dtype=torch.float64)).isfinite():
        weighted_factors(updates, module)  # names the client that has one; NaN also differs from itself
    if unlike:
        raise InvalidUpdateError(
            f"{module}: expected every client to hold the same rows of A, and {unlike[0]!r} and "
            f"{holders[longest][1].client_id!r} differ; leave A untrained, and give all clients the same"
        )
    return LoraFactor(B.to(dtype), A), B
