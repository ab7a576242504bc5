"""One rank for all modules."""

from collections.abc import Mapping
from dataclasses import dataclass

from florist.linalg.spectrum import Spectrum
from florist.ranks.rule import require_rank


@dataclass(frozen=True, slots=True)
class FixedRank:
    """Every module keeps the same rank, or its numerical rank where that is smaller.

    Args:
        rank: at least 1.

    Raises:
        ConfigurationError: `rank` is below 1.

    >>> import torch
    >>> spectrum = Spectrum(torch.tensor([3.0, 2.0, 0.0]).double(), resolution=1e-6, shape=(8, 8))
    >>> FixedRank(1)({"layer": spectrum}), FixedRank(3)({"layer": spectrum})
    ({'layer': 1}, {'layer': 2})
    """

    rank: int

    def __post_init__(self) -> None:
        require_rank(self.rank)

    @property
    def required_energy(self) -> float:
        """The rule asks for all of it: nobody knows beforehand how much the leading directions hold."""
        return 1.0

    @property
    def per_module(self) -> bool:
        """Modules share nothing."""
        return True

    def __call__(self, spectra: Mapping[str, Spectrum], /) -> Mapping[str, int]:
        """Choose the rank of each module."""
        return {name: min(self.rank, spectrum.numerical_rank) for name, spectrum in spectra.items()}
