"""The factors of one adapted module, and an adapter as a mapping from module names to factors.

The scaling (alpha / r and its variants) is folded into ``B`` where an adapter is read, so that an update is ``B @ A``
here and nothing else: no ``lora_alpha`` reaches the algebra.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from florist.errors import InvalidAdapterError

# Below this fraction of the squared sum of the components' norms, the trace identity in float64 loses the norm's third
# digit: each of its terms is off by a few eps.
_CANCELLED = 1e-12


@dataclass(frozen=True, slots=True)
class FactorSpec:
    """What is known of a factor before its tensors are read.

    Attributes:
        out_features: m, the number of rows of ``B``.
        in_features: n, the number of columns of ``A``.
        rank: r, the number of columns of ``B`` and of rows of ``A``; 0 for a module whose update is zero.
        dtype: The dtype of both halves.
    """

    out_features: int
    in_features: int
    rank: int
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the adapted weight, (out_features, in_features)."""
        return self.out_features, self.in_features

    @property
    def nbytes(self) -> int:
        """The bytes of both halves."""
        return self.rank * (self.out_features + self.in_features) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class LoraFactor:
    """The update ``delta_W = B @ A`` of one module; the client's scaling is already folded into ``B``.

    >>> import torch
    >>> from florist import LoraFactor
    >>> factor = LoraFactor(B=torch.ones(3, 2), A=torch.ones(2, 4))
    >>> factor.rank, factor.spec.shape
    (2, (3, 4))
    >>> factor.energy() == float((factor.B @ factor.A).square().sum())
    True

    Attributes:
        B: The up-projection.
        A: The down-projection.

    Raises:
        InvalidAdapterError: The two ranks, dtypes or devices differ. (A half of rank 1 would otherwise broadcast.)
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
        """The shape, rank and dtype."""
        return FactorSpec(self.B.shape[0], self.A.shape[1], self.B.shape[1], self.B.dtype)

    @property
    def rank(self) -> int:
        """r, the number of components (the numerical rank of the product may be smaller)."""
        return self.B.shape[1]

    @property
    def nbytes(self) -> int:
        """The bytes of both halves."""
        return self.spec.nbytes

    def scaled(self, weight: float) -> "LoraFactor":
        """Return the factor of ``weight * B @ A``; only ``B`` is multiplied."""
        return LoraFactor(self.B * weight, self.A)

    def leading(self, rank: int) -> "LoraFactor":
        """Return the first `rank` components, or all where there are fewer; the tensors are shared."""
        return LoraFactor(self.B[:, :rank], self.A[:rank])

    def trailing(self, rank: int) -> "LoraFactor":
        """Return all components but the first `rank`; the tensors are shared."""
        return LoraFactor(self.B[:, rank:], self.A[rank:])

    def padded(self, rank: int) -> "LoraFactor":
        """Return the same product with at least `rank` components; those that are added are zero in both halves."""
        missing = max(0, rank - self.rank)
        return LoraFactor(
            torch.cat([self.B, self.B.new_zeros(self.B.shape[0], missing)], dim=1),
            torch.cat([self.A, self.A.new_zeros(missing, self.A.shape[1])]),
        )

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "LoraFactor":
        """Return the factor in another dtype or on another device; tensors that need no change are shared."""
        return LoraFactor(
            self.B.to(dtype=dtype or self.B.dtype, device=device or self.B.device),
            self.A.to(dtype=dtype or self.A.dtype, device=device or self.A.device),
        )

    def energy(self) -> float:
        """Return ``||B @ A||_F^2``, computed in float64 without the product.

        The trace identity ``||BA||_F^2 = sum((B^T B) * (A A^T))`` needs two r x r matrices only. Where components
        cancel so far that this loses digits, the product of the triangular factors of both halves (QR) is taken, which
        has the same norm. The norm is right to a relative 1e-3, or to about 1e-15 of the norms of the components where
        that is more.

        Cost: O((m + n) r^2), and several times as long where components cancel.
        """
        B, A = self.B.double(), self.A.double()
        products = (B.T @ B) * (A @ A.T)
        energy = float(products.sum())
        terms = float(products.diagonal().sqrt().sum()) ** 2
        if energy >= _CANCELLED * terms or math.isnan(energy):
            return energy
        return float((torch.linalg.qr(B, mode="r")[1] @ torch.linalg.qr(A.T, mode="r")[1].T).square().sum())

    def delta_weight(self) -> Float[Tensor, "out_features in_features"]:
        """Return the dense update ``B @ A``, which is meant for tests and small modules.

        Cost: O(m n r) time, O(m n) memory.
        """
        return self.B @ self.A


def stack(factors: Sequence[LoraFactor]) -> LoraFactor:
    """Return the factor whose product is the sum of the products: every ``B`` side by side, every ``A`` below the last.

    The sum is exact, since ``[B_1 B_2] [A_1; A_2] = B_1 A_1 + B_2 A_2`` has no cross terms.

    Raises:
        ValueError: No factor is given.

    Source: FLoRA, arXiv:2409.05976, eq. 4; FLoRIST, arXiv:2506.09199, eq. 1.
    """
    if not factors:
        raise ValueError("expected at least one factor to stack, got none")
    return LoraFactor(torch.cat([f.B for f in factors], dim=1), torch.cat([f.A for f in factors], dim=0))


class AdapterState(Mapping[str, LoraFactor]):
    """A read-only mapping from module names, in sorted order, to factors that are read when they are asked for.

    An adapter on disk hands over its tensors one module at a time, so that combining many adapters takes the memory
    of one module of each. Shapes, ranks and bytes come from `specs`, and no tensor is read for them.

    >>> import torch
    >>> from florist import AdapterState, LoraFactor
    >>> adapter = AdapterState.of({
    ...     "layers.0.v_proj": LoraFactor(torch.zeros(4, 1), torch.ones(1, 4)),
    ...     "layers.0.q_proj": LoraFactor(torch.zeros(4, 2), torch.ones(2, 4)),
    ... })
    >>> list(adapter)
    ['layers.0.q_proj', 'layers.0.v_proj']
    >>> adapter
    AdapterState(2 modules, total rank 3, 96 bytes)
    >>> adapter["layers.0.v_proj"].rank
    1

    Args:
        specs: What is known of the factor of every module.
        read: A function that returns the factor of one module; it is called anew at each access.
    """

    __slots__ = ("_read", "specs")

    def __init__(self, specs: Mapping[str, FactorSpec], read: Callable[[str], LoraFactor]) -> None:
        self.specs: Mapping[str, FactorSpec] = dict(sorted(specs.items()))
        self._read = read

    @classmethod
    def of(cls, factors: Mapping[str, LoraFactor]) -> "AdapterState":
        """Return an adapter that is held in memory."""
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
        """Return the same adapter on another device, to which each factor is copied when it is read."""
        return AdapterState(self.specs, lambda name: self._read(name).to(device=device))

    def map(self, change: Callable[[LoraFactor], LoraFactor]) -> "AdapterState":
        """Return an adapter in memory whose factors are what `change` makes of these."""
        return AdapterState.of({name: change(factor) for name, factor in self.items()})

    @property
    def total_rank(self) -> int:
        """The sum of the ranks of all modules."""
        return sum(spec.rank for spec in self.specs.values())

    @property
    def nbytes(self) -> int:
        """The bytes of all factors."""
        return sum(spec.nbytes for spec in self.specs.values())

    def __repr__(self) -> str:
        return f"AdapterState({len(self)} modules, total rank {self.total_rank}, {self.nbytes} bytes)"
