"""The smallest rank that holds a fraction of the energy of its module."""

from collections.abc import Mapping
from dataclasses import dataclass

from florist.linalg.spectrum import Spectrum
from florist.ranks.rule import require_fraction


@dataclass(frozen=True, slots=True)
class EnergyThreshold:
    """Each module keeps the smallest rank that holds a fraction `tau` of its energy.

    That is the smallest p with ``sum_{i<=p} sigma_i^2 >= tau * sum_i sigma_i^2``. At ``tau = 1`` a module keeps its
    numerical rank. A zero update keeps nothing.

    Source: FLoRIST, arXiv:2506.09199, sec. 3.2.

    Args:
        tau: the fraction, in (0, 1].

    Raises:
        ConfigurationError: `tau` lies outside.

    >>> import torch
    >>> spectrum = Spectrum(torch.tensor([3.0, 2.0, 2.0]).double(), resolution=1e-6, shape=(8, 8))
    >>> EnergyThreshold(0.7)({"layer": spectrum})  # 9 + 4 of 17
    {'layer': 2}
    """

    tau: float

    def __post_init__(self) -> None:
        require_fraction(self.tau)

    @property
    def required_energy(self) -> float:
        """The rule asks for `tau`."""
        return self.tau

    @property
    def per_module(self) -> bool:
        """Modules share nothing."""
        return True

    def __call__(self, spectra: Mapping[str, Spectrum], /) -> Mapping[str, int]:
        """Choose the rank of each module.

        Cost: O(k) for a module of k singular values.
        """
        return {name: spectrum.rank_holding(self.tau) for name, spectrum in spectra.items()}
