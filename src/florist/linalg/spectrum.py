"""The singular values of one module's update: what solvers find and rank rules look at."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """The singular values of one module's update. Energy is the sum of their squares.

    Attributes:
        S: non-increasing, on the CPU: all of them, or the leading ones where a solver stopped early.
        resolution: relative to ``S[0]``: values below are rounding noise of the solver or of the input.
        shape: (out_features, in_features) of the module.
        tail_energy: of the values that are not in `S`, so that fractions always refer to the whole update.
    """

    S: Float64[Tensor, " k"]
    resolution: float
    shape: tuple[int, int]
    tail_energy: float = 0.0

    @property
    def total_energy(self) -> float:
        """``||dW||_F^2`` of the whole update."""
        return self.discarded_energy(0)

    @property
    def numerical_rank(self) -> int:
        """How many singular values stand above the noise; 0 for a zero update."""
        return self.rank_holding(1.0)

    def rank_holding(self, energy: float) -> int:
        """The smallest p with ``sum_{i<=p} sigma_i^2 >= energy * ||dW||_F^2``, at most the numerical rank.

        An energy of 1 gives the numerical rank: rounding would make the sum fall short of the whole, or not.
        """
        return rank_holding(self.S.square(), energy=energy, total_energy=self.total_energy, resolution=self.resolution)

    def discarded_energy(self, rank: int) -> float:
        """``||dW - dW_rank||_F^2`` of the best approximation of that rank (Eckart and Young, 1936).

        Summed from the smallest value up, which keeps the digits that ``total - kept`` would cancel.
        """
        return self.tail_energy + float(self.S[rank:].flip(0).square().sum())

    def kept_energy(self, rank: int) -> float:
        """Fraction of the energy in the leading `rank` directions; 1 for a zero update."""
        total = self.total_energy
        return 1.0 - self.discarded_energy(rank) / total if total else 1.0

    def leading(self, rank: int) -> "Spectrum":
        """The first `rank` values, the energy of the others in `tail_energy`."""
        return Spectrum(self.S[:rank], self.resolution, self.shape, self.discarded_energy(rank))


def rank_holding(squares: Float64[Tensor, " k"], *, energy: float, total_energy: float, resolution: float) -> int:
    """The smallest rank that holds a fraction of the energy, at most the numerical rank.

    Args:
        squares: non-increasing squared singular values, on any device.
        energy: the fraction; 1 asks for the numerical rank.
        total_energy: of the whole update.
        resolution: relative to the largest singular value.
    """
    if squares.numel() == 0 or squares[0] <= 0:
        return 0
    resolved = int((squares > resolution**2 * squares[0]).sum())
    if energy == 1:
        return resolved
    held = torch.cumsum(squares, dim=0)
    return min(int((held < energy * total_energy).sum()) + 1, resolved)
