"""A fraction of the energy of all modules together, in few parameters."""

from collections.abc import Mapping
from dataclasses import dataclass

from florist.linalg.spectrum import Spectrum
from florist.ranks.directions import by_energy_per_parameter
from florist.ranks.rule import require_fraction


@dataclass(frozen=True, slots=True)
class GlobalEnergyThreshold:
    """All modules together keep a fraction `tau` of their energy, in few parameters.

    A direction of an m x n module costs m + n parameters and holds sigma^2. The rule takes directions in the order of
    sigma^2 per parameter until it has the energy. Where all modules have one shape, no choice needs fewer parameters;
    where shapes differ, the best choice may need a few less. A module that matters little may keep nothing.

    Args:
        tau: the fraction, in (0, 1].

    Raises:
        ConfigurationError: `tau` lies outside.

    >>> import torch
    >>> strong, weak = (Spectrum(torch.tensor(S).double(), 1e-6, shape=(8, 8)) for S in ([9.0, 8.0, 7.0], [0.2, 0.1]))
    >>> GlobalEnergyThreshold(0.9)({"strong": strong, "weak": weak})
    {'strong': 3, 'weak': 0}
    """

    tau: float

    def __post_init__(self) -> None:
        require_fraction(self.tau)

    @property
    def required_energy(self) -> float:
        """The rule asks for all of it: one module may keep every direction while another keeps none."""
        return 1.0

    @property
    def per_module(self) -> bool:
        """Modules share the threshold."""
        return False

    def __call__(self, spectra: Mapping[str, Spectrum], /) -> Mapping[str, int]:
        """Choose the rank of each module.

        Cost: O(K log K) for K directions of all modules.
        """
        if self.tau == 1:
            return {name: spectrum.numerical_rank for name, spectrum in spectra.items()}
        missing = self.tau * sum(spectrum.total_energy for spectrum in spectra.values())
        ranks = dict.fromkeys(spectra, 0)
        for direction in by_energy_per_parameter(spectra):
            if missing <= 0:
                break
            ranks[direction.module] += 1
            missing -= direction.energy
        return ranks
