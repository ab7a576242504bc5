"""One adapted module's factors, and an adapter as a mapping from module name to factors.

The scaling (alpha / r and its variants) is folded in where an adapter is read, so an update here is ``B @ A`` and
nothing else: no ``lora_alpha`` reaches the algebra.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from florist.errors import InvalidAdapterError


@dataclass(frozen=True, slots=True)
class FactorSpec:
    """What is known of a factor without reading it.

    Attributes:
        out_features: m, rows of ``B``.
        in_features: n, columns of ``A``.
        rank: r, columns of ``B`` and rows of ``A``; 0 for a module whose update is zero.
        dtype: of both halves.
    """

    out_features: int
    in_features: int
    rank: int
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features) of the weight."""
        return self.out_features, self.in_features

    @property
    def nbytes(self) -> int:
        """Bytes of both halves."""
        return self.rank * (self.out_features + self.in_features) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class LoraFactor:
    """``delta_W = B @ A``; the client's scaling is already folded in.

    Attributes:
        B: up-projection.
        A: down-projection.

    Raises:
        InvalidAdapterError: the two ranks, dtypes or devices differ. (A rank-1 half would otherwise broadcast.)
    """

    B: Float[Tensor, "out_features rank"]
    A: Float[Tensor, "rank in_features"]

    def __post_init__(self) -> None:
        if self.B.ndim != 2 or self.A.ndim != 2 or self.B.shape[1] != self.A.shape[0]:
            raise InvalidAdapterError(
                f"expected B (out_features, r) and A (r, in_features) of one rank r, "
                f"got B {tuple(self.B.shape)} and A {tuple(self.A.shape)}"
            )
        if self.B.dtype != self.A.dtype or self.B.device != self.A.device:
            raise InvalidAdapterError(
                f"expected B and A of one dtype on one device, got {self.B.dtype} on {self.B.device} and "
                f"{self.A.dtype} on {self.A.device}; convert one with .to()"
            )

    @property
    def spec(self) -> FactorSpec:
        """Shape, rank and dtype."""
        return FactorSpec(self.B.shape[0], self.A.shape[1], self.B.shape[1], self.B.dtype)

    @property
    def rank(self) -> int:
        """r, the number of components (the numerical rank of the product may be smaller)."""
        return self.B.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of both halves."""
        return self.spec.nbytes

    def scaled(self, weight: float) -> "LoraFactor":
        """The factor of ``weight * B @ A``; only ``B`` is multiplied."""
        return LoraFactor(self.B * weight, self.A)

    def leading(self, rank: int) -> "LoraFactor":
        """The first `rank` components, or all where there are fewer; the tensors are shared."""
        return LoraFactor(self.B[:, :rank], self.A[:rank])

    def trailing(self, rank: int) -> "LoraFactor":
        """All components but the first `rank`; the tensors are shared."""
        return LoraFactor(self.B[:, rank:], self.A[rank:])

    def padded(self, rank: int) -> "LoraFactor":
        """The same product with `rank` components, the new ones zero in both halves (never fewer than before)."""
        missing = max(0, rank - self.rank)
        return LoraFactor(
            torch.cat([self.B, self.B.new_zeros(self.B.shape[0], missing)], dim=1),
            torch.cat([self.A, self.A.new_zeros(missing, self.A.shape[1])]),
        )

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "LoraFactor":
        """The same factor in another dtype or on another device; the tensors are shared where nothing changes."""
        return LoraFactor(
            self.B.to(dtype=dtype or self.B.dtype, device=device or self.B.device),
            self.A.to(dtype=dtype or self.A.dtype, device=device or self.A.device),
        )

    def energy(self) -> float:
        """``||B @ A||_F^2``, in float64 and without the product.

        The trace identity ``||BA||_F^2 = sum((B^T B) * (A A^T))``. Cost: O((m + n) r^2).
        """
        B, A = self.B.double(), self.A.double()
        return float(((B.T @ B) * (A @ A.T)).sum())

    def delta_weight(self) -> Float[Tensor, "out_features in_features"]:
        """The dense update ``B @ A``: for tests and small modules. Cost: O(m n r) time, O(m n) memory."""
        return self.B @ self.A


def stack(factors: Sequence[LoraFactor]) -> LoraFactor:
    """The factor whose product is the sum of the products: ``B`` side by side, ``A`` one above the other.

    Exact: ``[B_1 B_2] [A_1; A_2] = B_1 A_1 + B_2 A_2`` has no cross terms (arXiv:2409.05976, eq. 4; FLoRIST
    arXiv:2506.09199, eq. 1).

    Raises:
        ValueError: no factor is given.
    """
    if not factors:
        raise ValueError("expected at least one factor to stack, got none")
    return LoraFactor(torch.cat([f.B for f in factors], dim=1), torch.cat([f.A for f in factors], dim=0))


class AdapterState(Mapping[str, LoraFactor]):
    """Module name -> factor: sorted by name, read-only, and read only when asked for.

    An adapter on disk hands over its tensors one module at a time, so that combining many adapters needs the memory
    of one module of each. What is known beforehand (shapes, ranks, bytes) comes from `specs` and reads nothing.

    Args:
        specs: what is known of every module's factor.
        read: returns the factor of one module, and is called anew at each access.
    """

    __slots__ = ("_read", "specs")

    def __init__(self, specs: Mapping[str, FactorSpec], read: Callable[[str], LoraFactor]) -> None:
        self.specs: Mapping[str, FactorSpec] = dict(sorted(specs.items()))
        self._read = read

    @classmethod
    def of(cls, factors: Mapping[str, LoraFactor]) -> "AdapterState":
        """An adapter held in memory."""
        held = dict(factors)
        return cls({name: factor.spec for name, factor in held.items()}, held.__getitem__)

    def __getitem__(self, module: str) -> LoraFactor:
        if module not in self.specs:
            raise KeyError(module)
        return self._read(module)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def on(self, device: torch.device | str) -> "AdapterState":
        """The same adapter on another device: a factor is copied there when it is read."""
        return AdapterState(self.specs, lambda name: self._read(name).to(device=device))

    def map(self, change: Callable[[LoraFactor], LoraFactor]) -> "AdapterState":
        """An adapter in memory with every factor changed."""
        return AdapterState.of({name: change(factor) for name, factor in self.items()})

    @property
    def total_rank(self) -> int:
        """Sum of the ranks over all modules."""
        return sum(spec.rank for spec in self.specs.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all factors."""
        return sum(spec.nbytes for spec in self.specs.values())

    def __repr__(self) -> str:
        return f"AdapterState({len(self)} modules, total rank {self.total_rank}, {self.nbytes} bytes)"
