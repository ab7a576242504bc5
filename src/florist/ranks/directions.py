"""The directions of all modules in the order in which rules that share something take them."""

from collections.abc import Mapping
from dataclasses import dataclass

from florist.linalg.spectrum import Spectrum


@dataclass(frozen=True, slots=True)
class Direction:
    """One resolved direction of a module.

    Attributes:
        module: the name of the module.
        number: which of its directions it is, from 1.
        energy: its squared singular value.
        density: that energy by the parameters that the direction costs.
    """

    module: str
    number: int
    energy: float
    density: float


def by_energy_per_parameter(spectra: Mapping[str, Spectrum]) -> list[Direction]:
    """Every resolved direction of every module, the most energy per parameter first; name and number break ties."""
    directions = [
        Direction(name, number, value, value / sum(spectrum.shape))
        for name, spectrum in spectra.items()
        for number, value in enumerate(spectrum.S[: spectrum.numerical_rank].square().tolist(), start=1)
    ]
    return sorted(directions, key=lambda d: (-d.density, d.module, d.number))
