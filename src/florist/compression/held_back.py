"""What is held back of one module: what was due, less what arrived, as one factor of bounded rank."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from florist.factors import LoraFactor, stack
from florist.linalg import ThinSvd, WeightedFactor, decompose

_NEGLIGIBLE = 1e-8
"""A residual lets go the components that hold this fraction of its energy: a relative error of 1e-4 of it."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldBack:
    """What one module holds back.

    Attributes:
        factor: what is to be sent later.
        norm: the Frobenius norm of its product.
        let_go: the norm of what is never sent, or an upper bound.
    """

    factor: LoraFactor
    norm: float
    let_go: float


@dataclass(frozen=True, slots=True)
class Feedback:
    """How a residual is kept.

    Args:
        rank_factor: the residual of a module keeps at most this many times the rank of what was new, rounded up: the
            sum of the clients' ranks at the server, the client's rank at a client.
    """

    rank_factor: float = 1.0

    def bound(self, new_rank: int) -> int:
        """Return the largest rank of a residual, for what was new of rank `new_rank`."""
        return math.ceil(round(self.rank_factor * new_rank, 9))

    def residual(self, withheld: ThinSvd, codec_error: LoraFactor, new_rank: int) -> HeldBack:
        """Return ``T - D``, the withheld directions and the codec's error, at a bounded rank.

        The components of that stack are nearly orthogonal to each other: withheld directions are so exactly, and an
        error of rounding points anywhere. The largest components therefore hold almost as much as the directions of
        another decomposition would, at the cost of none. In a small module they overlap more, and it costs little: a
        stack of more than half of its size is decomposed.

        Args:
            withheld: the directions that the cut left out.
            codec_error: what was kept less what arrives of it, as `difference` gives it.
            new_rank: the rank of what was new.

        Cost: the thin products that form the withheld directions, and O((m + n) r^2) for two norms.
        """
        if 2 * (withheld.S.numel() + codec_error.rank) > min(withheld.spectrum.shape):
            return self._decomposed(withheld, codec_error, new_rank)
        errors = (codec_error.B.norm(dim=0) * codec_error.A.norm(dim=1)).double().cpu()
        sizes, order = torch.cat([withheld.S, errors]).sort(descending=True, stable=True)
        rank = min(_rank_holding(sizes.square(), 1.0 - _NEGLIGIBLE), self.bound(new_rank))
        count = withheld.S.numel()
        chosen = order[:rank]
        directions = int((chosen < count).sum())
        held, left = ((part[part >= count] - count).sort().values for part in (chosen, order[rank:]))
        factor = stack([withheld.factor(directions), _components(codec_error, held)])
        cut, lost = withheld.trailing(directions), product_norm(_components(codec_error, left))
        cut_energy = cut.spectrum.total_energy
        overlap = min(_largest_overlap(cut, codec_error, left), cut_energy**0.5 * lost)
        return HeldBack(factor, product_norm(factor), (cut_energy + lost**2 + 2 * overlap) ** 0.5)

    def bounded(self, factor: LoraFactor, new_rank: int) -> tuple[LoraFactor, float]:
        """Return a factor at a bounded rank, and the norm of what that lets go.

        Cost: one decomposition.
        """
        svd = decompose([WeightedFactor(1.0, factor.spec, lambda: factor)])
        rank = min(svd.spectrum.rank_holding(1.0 - _NEGLIGIBLE), self.bound(new_rank))
        return svd.factor(rank), svd.spectrum.discarded_energy(rank) ** 0.5

    def _decomposed(self, withheld: ThinSvd, codec_error: LoraFactor, new_rank: int) -> HeldBack:
        joined = stack([withheld.factor(withheld.S.numel()), codec_error])
        factor, lost = self.bounded(joined, new_rank)
        let_go = math.hypot(lost, withheld.spectrum.tail_energy**0.5)
        return HeldBack(factor, product_norm(factor), let_go)


def difference(exact: LoraFactor, near: LoraFactor) -> LoraFactor:
    """Return ``B A - B' A'`` of two factors of one rank r that are nearly equal, as a factor of rank 2 r.

    ``B (A - A') + (B - B') A'``: the halves are subtracted, so that nothing is lost to the cancellation of two nearly
    equal products. Component i is the error of row i of A, and component r + i that of column i of B.
    """
    near = near.to(dtype=exact.B.dtype)
    return stack([LoraFactor(exact.B, exact.A - near.A), LoraFactor(exact.B - near.B, near.A)])


def product_norm(factor: LoraFactor) -> float:
    """Return ``||B @ A||_F`` without the product, in the precision of the factor, for components that do not cancel.

    Cost: O((m + n) r^2).
    """
    B, A = factor.B, factor.A
    # Squares of squares underflow float32 where an update is as small as 1e-12.
    return max(0.0, float(((B.T @ B).double() * (A @ A.T).double()).sum())) ** 0.5


def _rank_holding(squares: Tensor, energy: float) -> int:
    held = torch.cumsum(squares, dim=0)
    return min(int((held < energy * held[-1]).sum()) + 1, int((squares > 0).sum())) if squares.numel() else 0


def _components(factor: LoraFactor, chosen: Tensor) -> LoraFactor:
    index = chosen.to(factor.B.device)
    return LoraFactor(factor.B[:, index], factor.A[index])


def _largest_overlap(dropped: ThinSvd, codec_error: LoraFactor, left: Tensor) -> float:
    """Return a bound on the inner product of the dropped directions and the dropped components of the codec's error.

    Kept directions are orthogonal to withheld ones. An error of row i lies along the kept ``B_i`` and overlaps with
    nothing; an error of column i lies along ``A'_i``, which differs from the kept ``A_i`` by the error of row i alone.
    With the largest dropped singular value s, the overlap is at most ``s ||B_i - B'_i|| ||A_i - A'_i||``. The inner
    product itself would take as long as the codec does, and is far smaller: errors point anywhere.
    """
    rank = codec_error.rank // 2
    columns, rows = codec_error.B[:, rank:].norm(dim=0), codec_error.A[:rank].norm(dim=1)
    largest = float(dropped.S[0]) if dropped.S.numel() else dropped.spectrum.tail_energy**0.5
    of_columns = (left[left >= rank] - rank).to(columns.device)
    return largest * float((columns * rows)[of_columns].sum())
