"""The singular values of one module's update, which solvers find and rank rules look at."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

# Measured on 20,000 updates of all routes: where an energy exceeds the noise of one squared value so many times, its
# square root was off by less than 4e-4.
_NOISE_MARGIN = 2e3
# Rounding of the factors is not quite orthogonal to what the cut leaves out. With this distance it need not be.
_ROUNDING_MARGIN = 1e3


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """The singular values of one module's update. The energy is the sum of their squares.

    Attributes:
        S: All singular values, or the leading ones where a solver stopped early; non-increasing, on the CPU.
        resolution: Values below this fraction of ``S[0]`` are rounding noise of the solver or of the input.
        shape: The (out_features, in_features) of the module.
        tail_energy: The energy of the values that are not in `S`; with it, fractions refer to the whole update.
        known_from: The error of a cut, which is the square root of its discarded energy, is right to a relative 1e-3
            where that energy is at least so much. Where it is less, the rounding of the solver or of the cut's own
            factors may exceed it; `residual.cut_norms` then finds the error from the factors.
    """

    S: Float64[Tensor, " k"]
    resolution: float
    shape: tuple[int, int]
    tail_energy: float = 0.0
    known_from: float = 0.0

    @property
    def total_energy(self) -> float:
        """The energy of the whole update, ``||dW||_F^2``."""
        return self.discarded_energy(0)

    @property
    def numerical_rank(self) -> int:
        """The number of singular values above the noise; 0 for a zero update."""
        return self.rank_holding(1.0)

    def rank_holding(self, energy: float) -> int:
        """Return the smallest p with ``sum_{i<=p} sigma_i^2 >= energy * ||dW||_F^2``, at most the numerical rank.

        An energy of 1 gives the numerical rank, because rounding would decide whether the sum reaches the whole.
        """
        return rank_holding(self.S.square(), energy=energy, total_energy=self.total_energy, resolution=self.resolution)

    def discarded_energy(self, rank: int) -> float:
        """Return ``||dW - dW_rank||_F^2`` for the best approximation of that rank (Eckart and Young, 1936).

        The sum begins with the smallest value, which keeps the digits that ``total - kept`` would cancel.
        """
        return self.tail_energy + float(self.S[rank:].flip(0).square().sum())

    def kept_energy(self, rank: int) -> float:
        """Return the fraction of the energy in the leading `rank` directions; 1 for a zero update."""
        total = self.total_energy
        return 1.0 - self.discarded_energy(rank) / total if total else 1.0

    def leading(self, rank: int) -> "Spectrum":
        """Return the first `rank` values; `tail_energy` has the energy of the others."""
        return Spectrum(self.S[:rank], self.resolution, self.shape, self.discarded_energy(rank), self.known_from)

    def trailing(self, rank: int) -> "Spectrum":
        """Return the values without the first `rank`; the noise stays where it was."""
        S = self.S[rank:]
        resolution = self.resolution * float(self.S[0] / S[0]) if S.numel() and S[0] > 0 else self.resolution
        return Spectrum(S, resolution, self.shape, self.tail_energy, self.known_from)


def rank_holding(squares: Float64[Tensor, " k"], *, energy: float, total_energy: float, resolution: float) -> int:
    """Return the smallest rank that holds a fraction of the energy, at most the numerical rank.

    Args:
        squares: The squared singular values, non-increasing, on any device.
        energy: The fraction; 1 asks for the numerical rank.
        total_energy: The energy of the whole update.
        resolution: Singular values below this fraction of the largest count as zero.
    """
    if squares.numel() == 0 or squares[0] <= 0:
        return 0
    resolved = int((squares > resolution**2 * squares[0]).sum())
    if energy == 1:
        return resolved
    held = torch.cumsum(squares, dim=0)
    return min(int((held < energy * total_energy).sum()) + 1, resolved)


def known_energy(noise: float, size: float, dtype: torch.dtype) -> float:
    """Return `Spectrum.known_from` for a solver.

    Args:
        noise: What a squared singular value may be off by.
        size: The energy of the terms whose sum the update is, or a bound on it: the factors of a cut are off by its
            square root times the eps of `dtype`.
        dtype: The precision of the factors of a cut.
    """
    return max(_NOISE_MARGIN * noise, (_ROUNDING_MARGIN * torch.finfo(dtype).eps) ** 2 * size)
