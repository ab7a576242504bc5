"""How many directions to keep: rules that turn the spectra of all modules into a rank for each.

Energy is the sum of squared singular values. A rule sees every module at once, so that it may share a budget
between them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from florist.errors import ConfigurationError


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """The singular values of one module's update.

    Attributes:
        S: non-increasing singular values: all of them, or the leading ones where a solver stopped early.
        resolution: relative to ``S[0]``, what the solver could tell from zero.
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
        """How many singular values stand above the solver's noise; 0 for a zero update."""
        if self.S.numel() == 0 or self.S[0] == 0:
            return 0
        return int((self.S > self.resolution * self.S[0]).sum())

    def discarded_energy(self, rank: int) -> float:
        """``||dW - dW_rank||_F^2`` of the best approximation of that rank (Eckart and Young, 1936).

        Summed from the smallest value up, which keeps the digits that ``total - kept`` would cancel.
        """
        return self.tail_energy + float(self.S[rank:].flip(0).square().sum())

    def kept_energy(self, rank: int) -> float:
        """Fraction of the energy in the leading `rank` directions; 1 for a zero update."""
        total = self.total_energy
        return 1.0 - self.discarded_energy(rank) / total if total else 1.0


@runtime_checkable
class RankRule(Protocol):
    """Chooses a rank for every module."""

    @property
    def required_energy(self) -> float:
        """The largest fraction of a module's energy that the rule may want; solvers may leave out the rest."""
        ...

    def __call__(self, spectra: Mapping[str, Spectrum], /) -> Mapping[str, int]:
        """A rank between 0 and the numerical rank for each module of `spectra`."""
        ...


@dataclass(frozen=True, slots=True)
class EnergyThreshold:
    """Per module, the smallest rank that holds a fraction `tau` of its energy.

    The smallest p with ``sum_{i<=p} sigma_i^2 >= tau * sum_i sigma_i^2`` (FLoRIST, arXiv:2506.09199, sec. 3.2).
    ``tau = 1`` keeps the numerical rank; a zero update keeps nothing.

    Args:
        tau: in (0, 1].

    Raises:
        ConfigurationError: `tau` lies outside.
    """

    tau: float

    def __post_init__(self) -> None:
        if not 0 < self.tau <= 1:
            raise ConfigurationError(f"expected 0 < tau <= 1 (a fraction of the energy to keep), got {self.tau}")

    @property
    def required_energy(self) -> float:
        """`tau`."""
        return self.tau

    def __call__(self, spectra: Mapping[str, Spectrum], /) -> Mapping[str, int]:
        """The rank of each module. Cost: O(k) a module."""
        return {name: self._rank(spectrum) for name, spectrum in spectra.items()}

    def _rank(self, spectrum: Spectrum) -> int:
        full = spectrum.numerical_rank
        if self.tau == 1 or full == 0:
            return full
        held = torch.cumsum(spectrum.S.square(), dim=0)
        target = torch.tensor(self.tau * spectrum.total_energy, dtype=held.dtype, device=held.device)
        return min(int(torch.searchsorted(held, target)) + 1, full)
