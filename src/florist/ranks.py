"""How many directions each module keeps: a rank rule turns the spectra of all modules into a rank for each.

Energy is the sum of squared singular values. A rule sees all modules at once, so that it may share a budget between
them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from florist.errors import ConfigurationError
from florist.linalg.spectrum import Spectrum


@runtime_checkable
class RankRule(Protocol):
    """Chooses a rank for every module."""

    @property
    def required_energy(self) -> float:
        """The largest fraction of a module's energy that the rule may ask for. A solver may leave out the rest."""
        ...

    @property
    def per_module(self) -> bool:
        """Whether a module's rank depends on its own spectrum alone, so that the rule may be asked one by one."""
        ...

    def __call__(self, spectra: Mapping[str, Spectrum], /) -> Mapping[str, int]:
        """Choose a rank for each module of `spectra`, between 0 and the module's numerical rank."""
        ...


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
        _require_fraction(self.tau)

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
        _require_rank(self.rank)

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
        _require_rank(self.rank)

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
        _require_fraction(self.tau)

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
        for direction in _by_energy_per_parameter(spectra):
            if missing <= 0:
                break
            ranks[direction.module] += 1
            missing -= direction.energy
        return ranks


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
        for direction in _by_energy_per_parameter(spectra):
            name = direction.module
            if direction.number <= ranks[name] or name in closed:
                continue
            if prices[name] > left:
                closed.add(name)  # later directions of the module are useless without this one
                continue
            ranks[name] += 1
            left -= prices[name]
        return ranks


@dataclass(frozen=True, slots=True)
class Capped:
    """Another rule, which may give no module more than `max_rank`.

    The cap is part of the choice. A rule whose modules share a threshold or a budget chooses among the first `max_rank`
    directions of each module, and spends on other modules what the cap frees.

    Args:
        rule: the other rule.
        max_rank: at least 1. It may be what a server can load.

    Raises:
        ConfigurationError: `max_rank` is below 1.

    >>> import torch
    >>> strong, weak = (Spectrum(torch.tensor(S).double(), 1e-6, shape=(8, 8)) for S in ([9.0, 8.0, 7.0], [0.2, 0.1]))
    >>> ByteBudget(256)({"strong": strong, "weak": weak})
    {'strong': 3, 'weak': 1}
    >>> Capped(ByteBudget(256), max_rank=2)({"strong": strong, "weak": weak})
    {'strong': 2, 'weak': 2}
    """

    rule: RankRule
    max_rank: int

    def __post_init__(self) -> None:
        _require_rank(self.max_rank)

    @property
    def required_energy(self) -> float:
        """What the other rule requires."""
        return self.rule.required_energy

    @property
    def per_module(self) -> bool:
        """What the other rule says."""
        return self.rule.per_module

    def __call__(self, spectra: Mapping[str, Spectrum], /) -> Mapping[str, int]:
        """Choose the rank of each module.

        Cost: at most twice that of the other rule.
        """
        ranks = self.rule(spectra)
        if not self.per_module and any(rank > self.max_rank for rank in ranks.values()):
            # The energy beyond the cap stays in the totals, so that a threshold still refers to the whole update.
            ranks = self.rule({name: spectrum.leading(self.max_rank) for name, spectrum in spectra.items()})
        return {name: min(rank, self.max_rank) for name, rank in ranks.items()}


@dataclass(frozen=True, slots=True)
class _Direction:
    module: str
    number: int
    energy: float
    density: float


def _by_energy_per_parameter(spectra: Mapping[str, Spectrum]) -> list[_Direction]:
    """Every resolved direction of every module, the most energy per parameter first; name and number break ties."""
    directions = [
        _Direction(name, number, value, value / sum(spectrum.shape))
        for name, spectrum in spectra.items()
        for number, value in enumerate(spectrum.S[: spectrum.numerical_rank].square().tolist(), start=1)
    ]
    return sorted(directions, key=lambda d: (-d.density, d.module, d.number))


def _require_fraction(tau: float) -> None:
    if not 0 < tau <= 1:
        raise ConfigurationError(f"expected 0 < tau <= 1 (a fraction of the energy to keep), got {tau}")


def _require_rank(rank: int) -> None:
    if rank < 1:
        raise ConfigurationError(f"expected a rank of at least 1, got {rank}")
