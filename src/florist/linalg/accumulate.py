"""The weighted sum of many factors in bounded memory, as a stack, or as the dense update where that is cheaper."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from florist.errors import InvalidAdapterError
from florist.factors import FactorSpec, LoraFactor

# So many components are gathered before they are added to the dense update: enough for an efficient product.
_BATCH = 512


@dataclass(frozen=True, slots=True, eq=False)
class WeightedFactor:
    """One client's share of a sum, ``weight * B @ A`` of one module.

    Attributes:
        weight: The weight of the client, a finite number.
        spec: What is known of the factor that `read` will return.
        read: Returns the factor, from memory or from disk; it is called anew for each pass over the parts.
    """

    weight: float
    spec: FactorSpec
    read: Callable[[], LoraFactor]


@dataclass(frozen=True, slots=True, eq=False)
class WeightedStack:
    """The stack that stands for ``dW = B @ diag(weights) @ A``; the weights stay apart, so that they round nothing.

    Attributes:
        factor: The components of all clients side by side.
        weights: The weight of each component.
    """

    factor: LoraFactor
    weights: Float64[Tensor, " rank"]


@dataclass(frozen=True, slots=True, eq=False)
class DenseSum:
    """The dense update itself.

    Attributes:
        W: The sum.
        rounding: The norm of the error that the summation may have left. Where the terms cancel, it is large beside
            the norm of ``W``.
    """

    W: Float[Tensor, "out_features in_features"]
    rounding: float


def stack_parts(parts: Sequence[WeightedFactor], dtype: torch.dtype) -> WeightedStack:
    """Stack all factors in `dtype`, on the device of the first.

    Each half is widened and copied straight into its place, in one pass.

    Args:
        parts: At least one part; all have one shape.
        dtype: The precision of the stack.

    Raises:
        InvalidAdapterError: A factor is not what its spec says.

    Cost: R (m + n) numbers of memory.
    """
    rank, spec = sum(part.spec.rank for part in parts), parts[0].spec
    first = _read(parts[0])
    B = torch.empty(spec.out_features, rank, dtype=dtype, device=first.B.device)
    A = torch.empty(rank, spec.in_features, dtype=dtype, device=first.A.device)
    start = 0
    for part in parts:
        factor = first if part is parts[0] else _read(part)
        B[:, start : start + factor.rank].copy_(factor.B)
        A[start : start + factor.rank].copy_(factor.A)
        start += factor.rank
    weights = [part.weight for part in parts for _ in range(part.spec.rank)]
    return WeightedStack(LoraFactor(B, A), torch.tensor(weights, dtype=torch.float64, device=B.device))


def sum_parts(parts: Sequence[WeightedFactor], dtype: torch.dtype) -> DenseSum:
    """Sum the dense update, a batch of clients at a time.

    Args:
        parts: At least one part; all have one shape.
        dtype: The precision of the sum.

    Raises:
        InvalidAdapterError: A factor is not what its spec says.

    Cost: O(m n R) time; the memory of m n numbers and of one batch, whatever the number of clients.
    """
    W: Tensor | None = None
    squared_magnitude = 0.0
    for batch in _batches(parts):
        stack = stack_parts(batch, dtype)
        B, A = stack.factor.B * stack.weights.to(dtype), stack.factor.A
        if W is None:
            W = B.new_zeros(B.shape[0], A.shape[1])
        W.addmm_(B, A)
        squared_magnitude += float((B.square().sum(dim=0) * A.square().sum(dim=1)).sum(dtype=torch.float64))
    if W is None:
        raise ValueError("expected at least one factor to sum, got none")
    # Measured: the rounding errors of the elements are independent enough to spread over all directions.
    spread = min(W.shape) ** 0.5
    return DenseSum(W, 8 * torch.finfo(dtype).eps * squared_magnitude**0.5 / spread)


def _batches(parts: Sequence[WeightedFactor]) -> Iterator[list[WeightedFactor]]:
    batch: list[WeightedFactor] = []
    rank = 0
    for part in parts:
        if batch and rank + part.spec.rank > _BATCH:
            yield batch
            batch, rank = [], 0
        batch.append(part)
        rank += part.spec.rank
    if batch:
        yield batch


def _read(part: WeightedFactor) -> LoraFactor:
    factor = part.read()
    got, expected = factor.spec, part.spec
    # A copy into the stack would broadcast a half of rank 1.
    if (got.shape, got.rank) != (expected.shape, expected.rank):
        raise InvalidAdapterError(
            f"expected a factor of shape {expected.shape} and rank {expected.rank} as announced, "
            f"got shape {got.shape} and rank {got.rank}; was the file changed while it was read?"
        )
    return factor
