"""Inner products of whole updates, from their factors: what norms, angles and distances between clients follow from.

``<B_i A_i, B_j A_j> = sum((B_i^T B_j) * (A_i A_j^T))``, so that no dense update is ever made.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from florist.factors import AdapterState, LoraFactor
from florist.linalg.eigenpairs import gram_matrix
from florist.rounds import NOTHING, SavedParameters

# Clients are taken together until their ranks sum up to this: two Gram matrices of that size are in memory at a time.
_BLOCK = 1024
# So many numbers of the parameters that travel whole are widened to float64 at a time, over all clients.
_CHUNK = 1 << 23


def product_gram(
    adapters: Sequence[AdapterState], precision: torch.dtype | None = torch.float64
) -> Float64[Tensor, "clients clients"]:
    """The inner products of the adapters' products, over all modules.

    Each half is scaled to a largest number of 1 before it is multiplied, so that norms of 1e-20 and of 1e15 stand side
    by side. Sums over components, clients and modules are in float64.

    Args:
        adapters: finite ones. A module that one lacks counts as zero.
        precision: the dtype of the Gram matrices; None for that of the factors, at least float32, which is faster.

    Cost: O((m + n) R^2) a module, where R is the sum of the ranks, and the memory of one module of all adapters and of
    two matrices of 1024 x 1024.
    """
    count = len(adapters)
    inner = torch.zeros(count, count, dtype=torch.float64)
    for name in sorted(set[str]().union(*adapters)):
        holders = [k for k in range(count) if name in adapters[k].specs and adapters[k].specs[name].rank]
        factors = {k: adapters[k][name].to(device="cpu") for k in holders}
        dtype = precision
        for factor in factors.values():
            if precision is None:
                dtype = torch.promote_types(dtype or torch.float32, factor.B.dtype)
        blocks = list(_blocks(factors, holders))
        for i, block in enumerate(blocks):
            first = _Scaled(block, factors, dtype or torch.float32)
            inner[first.index(first)] += first.with_itself()
            for other in blocks[i + 1 :]:
                second = _Scaled(other, factors, dtype or torch.float32)
                found = first.with_other(second)
                inner[first.index(second)] += found
                inner[second.index(first)] += found.T
    return inner


def parameter_gram(
    parameters: Sequence[SavedParameters], before: SavedParameters = NOTHING
) -> Float64[Tensor, "clients clients"]:
    """The inner products of how far parameters moved that travel whole.

    Args:
        parameters: the values of each client, finite; what a client lacks did not move.
        before: the values to measure from; 0 for those that it lacks.

    Cost: O(K^2) a number for K clients, and 64 MiB of memory.
    """
    count = len(parameters)
    inner = torch.zeros(count, count, dtype=torch.float64)
    for name in sorted(set[str]().union(*parameters)):
        holders = [k for k in range(count) if name in parameters[k]]
        flat = [parameters[k][name].detach().to(device="cpu").flatten() for k in holders]
        origin = before[name].detach().to(device="cpu").flatten() if name in before else torch.zeros_like(flat[0])
        width = max(1, _CHUNK // len(holders))
        for start in range(0, origin.numel(), width):
            own = slice(start, start + width)
            moved = torch.stack([one[own].double() for one in flat]) - origin[own].double()
            scale = float(moved.abs().max())
            if scale:
                moved /= scale  # their squares might overflow
                where = torch.tensor(holders)
                inner[where[:, None], where] += (moved @ moved.T) * scale * scale
    return inner


def _blocks(factors: dict[int, LoraFactor], holders: Sequence[int]) -> Iterator[list[int]]:
    block: list[int] = []
    ranks = 0
    for k in holders:
        if block and ranks + factors[k].rank > _BLOCK:
            yield block
            block, ranks = [], 0
        block.append(k)
        ranks += factors[k].rank
    if block:
        yield block


class _Scaled:
    """The halves of some clients side by side, each with a largest number of 1."""

    __slots__ = ("A", "B", "_clients", "_scales", "_whose")

    def __init__(self, clients: Sequence[int], factors: dict[int, LoraFactor], dtype: torch.dtype) -> None:
        halves = [(factors[k].B.T, factors[k].A) for k in clients]
        largest = [[float(half.abs().max()) or 1.0 if half.numel() else 1.0 for half in both] for both in halves]
        self._clients = torch.tensor(clients)
        self._scales = torch.tensor([b * a for b, a in largest], dtype=torch.float64)
        self.B: Float[Tensor, "ranks m"] = torch.cat(
            [(B.double() / b).to(dtype) for (B, _), (b, _) in zip(halves, largest, strict=True)]
        )
        self.A: Float[Tensor, "ranks n"] = torch.cat(
            [(A.double() / a).to(dtype) for (_, A), (_, a) in zip(halves, largest, strict=True)]
        )
        ranks = torch.tensor([factors[k].rank for k in clients])
        owner = torch.repeat_interleave(torch.arange(len(clients)), ranks)
        self._whose = torch.nn.functional.one_hot(owner, len(clients)).double()

    def index(self, other: "_Scaled") -> tuple[Tensor, Tensor]:
        """Where the products with `other` belong."""
        return self._clients[:, None], other._clients  # noqa: SLF001  # its own class

    def with_itself(self) -> Float64[Tensor, "own own"]:
        """The inner products among these clients."""
        return self._summed(gram_matrix(self.B, self.B.dtype) * gram_matrix(self.A, self.A.dtype), self)

    def with_other(self, other: "_Scaled") -> Float64[Tensor, "own others"]:
        """The inner products with other clients."""
        return self._summed((self.B @ other.B.T) * (self.A @ other.A.T), other)

    def _summed(self, products: Float[Tensor, "ranks other_ranks"], other: "_Scaled") -> Float64[Tensor, "own others"]:
        summed = self._whose.T @ products.double() @ other._whose  # noqa: SLF001  # its own class
        return summed * self._scales[:, None] * other._scales  # noqa: SLF001  # its own class
