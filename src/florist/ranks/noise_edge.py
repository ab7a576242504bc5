"""The directions that stand above noise of a known size."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from florist.errors import ConfigurationError
from florist.linalg.spectrum import Spectrum
from florist.ranks.rule import require_rank


@dataclass(frozen=True, slots=True)
class NoiseEdge:
    """Each module keeps the directions that stand above noise whose size is known.

    The largest singular value of m x r independent Gaussian numbers of standard deviation `deviation` is close to
    ``deviation (sqrt(m) + sqrt(r))``, and no direction below that edge can be told from noise. The rule needs no data
    and no threshold: noise that was added for privacy is known.

    Source: the edge is that of Marchenko and Pastur; the rule for a known noise level follows M. Gavish and D. L.
    Donoho, Optimal shrinkage of singular values, arXiv:1405.7511.

    Args:
        deviation: the standard deviation of a number of the noise, along orthonormal rows.
        rank: r, in how many directions the noise is, which is the largest rank of a client.
        multiple: keep what is above so many edges.

    Raises:
        ConfigurationError: `deviation` is negative, or a number is out of range.

    >>> import torch
    >>> spectrum = Spectrum(torch.tensor([9.0, 5.0, 4.9]).double(), resolution=1e-6, shape=(9, 100))
    >>> NoiseEdge(deviation=1.0, rank=4)({"layer": spectrum})  # the edge is 3 + 2
    {'layer': 1}
    """

    deviation: float
    rank: int
    multiple: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.deviation < math.inf or not 0 < self.multiple < math.inf:
            raise ConfigurationError(
                f"expected a standard deviation of the noise from 0 and a multiple above 0, got {self.deviation} and "
                f"{self.multiple}"
            )
        require_rank(self.rank)

    @property
    def required_energy(self) -> float:
        """The rule asks for all of it: nobody knows beforehand how much stands above the noise."""
        return 1.0

    @property
    def per_module(self) -> bool:
        """Modules share nothing."""
        return True

    def edge(self, out_features: int) -> float:
        """The largest singular value of noise alone, about."""
        return self.multiple * self.deviation * (out_features**0.5 + self.rank**0.5)

    def __call__(self, spectra: Mapping[str, Spectrum], /) -> Mapping[str, int]:
        """Choose the rank of each module."""
        return {
            name: min(int((spectrum.S > self.edge(spectrum.shape[0])).sum()), spectrum.numerical_rank)
            for name, spectrum in spectra.items()
        }
