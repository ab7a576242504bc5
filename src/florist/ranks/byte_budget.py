"""The most energy that fits into a number of bytes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from florist.errors import ConfigurationError
from florist.linalg.spectrum import Spectrum
from florist.ranks.directions import by_energy_per_parameter


@dataclass(frozen=True, slots=True)
class ByteBudget:
    """All modules together keep the most energy that fits into a number of bytes.

    The rule takes directions in the order of `GlobalEnergyThreshold` and passes over those that no longer fit. PEFT
    cannot leave out a module and stores one of rank 0 with rank 1: every module therefore costs at least the bytes of
    one direction, and gets that direction.

    Args:
        nbytes: bytes of all factors together, as they are stored or sent.
        itemsize: bytes of one number.
        overhead: bytes of one direction beside its numbers, for the scales of a codec.

    Raises:
        ConfigurationError: not even rank 1 fits in every module. The rule raises it when it is called.

    >>> import torch
    >>> strong, weak = (Spectrum(torch.tensor(S).double(), 1e-6, shape=(8, 8)) for S in ([9.0, 8.0, 7.0], [0.2, 0.1]))
    >>> ByteBudget(200)({"strong": strong, "weak": weak})  # a direction has 16 numbers, which is 64 bytes
    {'strong': 2, 'weak': 1}
    """

    nbytes: int
    itemsize: float = 4
    overhead: int = 0

    @property
    def required_energy(self) -> float:
        """The rule asks for all of it: a module may keep every direction."""
        return 1.0

    @property
    def per_module(self) -> bool:
        """Modules share the budget."""
        return False

    def __call__(self, spectra: Mapping[str, Spectrum], /) -> Mapping[str, int]:
        """Choose the rank of each module.

        Cost: O(K log K) for K directions of all modules.
        """
        prices = {
            name: sum(math.ceil(length * self.itemsize) for length in spectrum.shape) + self.overhead
            for name, spectrum in spectra.items()
        }
        left = self.nbytes - sum(prices.values())
        if left < 0:
            raise ConfigurationError(
                f"expected a budget that holds rank 1 in each of the {len(spectra)} modules, {sum(prices.values())} "
                f"bytes, got {self.nbytes}; allow more, adapt fewer modules, or store a narrower dtype"
            )
        ranks = {name: min(1, spectrum.numerical_rank) for name, spectrum in spectra.items()}
        closed: set[str] = set()
        for direction in by_energy_per_parameter(spectra):
            name = direction.module
            if direction.number <= ranks[name] or name in closed:
                continue
            if prices[name] > left:
                closed.add(name)  # later directions of the module are useless without this one
                continue
            ranks[name] += 1
            left -= prices[name]
        return ranks
