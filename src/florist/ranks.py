"""How many directions to keep: rules that turn the spectra of all modules into a rank for each.

Energy is the sum of squared singular values. A rule sees every module at once, so that it may share a budget
between them.
"""

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
        """The largest fraction of a module's energy that the rule may want; solvers may leave out the rest."""
        ...

    @property
    def per_module(self) -> bool:
        """Whether a module's rank depends on its own spectrum alone, so that modules may be asked one by one."""
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
        _require_fraction(self.tau)

    @property
    def required_energy(self) -> float:
        """`tau`."""
        return self.tau

    @property
    def per_module(self) -> bool:
        """Always."""
        return True

    def __call__(self, spectra: Mapping[str, Spectrum], /) -> Mapping[str, int]:
        """The rank of each module. Cost: O(k) a module."""
        return {name: spectrum.rank_holding(self.tau) for name, spectrum in spectra.items()}


@dataclass(frozen=True, slots=True)
class FixedRank:
    """The same rank for every module; a module whose numerical rank is smaller keeps that.

    Args:
        rank: at least 1.

    Raises:
        ConfigurationError: it is less.
    """

    rank: int

    def __post_init__(self) -> None:
        _require_rank(self.rank)

    @property
    def required_energy(self) -> float:
        """All: how much energy the leading directions hold is not known beforehand."""
        return 1.0

    @property
    def per_module(self) -> bool:
        """Always."""
        return True

    def __call__(self, spectra: Mapping[str, Spectrum], /) -> Mapping[str, int]:
        """The rank of each module."""
        return {name: min(self.rank, spectrum.numerical_rank) for name, spectrum in spectra.items()}


@dataclass(frozen=True, slots=True)
class Capped:
    """Another rule, with no module above a rank.

    Args:
        rule: the other rule.
        max_rank: at least 1; what a server can load, for instance.

    Raises:
        ConfigurationError: it is less.
    """

    rule: RankRule
    max_rank: int

    def __post_init__(self) -> None:
        _require_rank(self.max_rank)

    @property
    def required_energy(self) -> float:
        """That of the other rule."""
        return self.rule.required_energy

    @property
    def per_module(self) -> bool:
        """As the other rule."""
        return self.rule.per_module

    def __call__(self, spectra: Mapping[str, Spectrum], /) -> Mapping[str, int]:
        """The rank of each module."""
        return {name: min(rank, self.max_rank) for name, rank in self.rule(spectra).items()}


@dataclass(frozen=True, slots=True)
class GlobalEnergyThreshold:
    """Few parameters whose energy, summed over all modules, is a fraction `tau` of the whole.

    A direction of a module costs m + n parameters and holds sigma^2: directions are taken in the order of sigma^2 per
    parameter until the sum is reached: the fewest parameters where all modules have one shape, close to it
    otherwise. Modules that matter little may keep nothing.

    Args:
        tau: in (0, 1].

    Raises:
        ConfigurationError: `tau` lies outside.
    """

    tau: float

    def __post_init__(self) -> None:
        _require_fraction(self.tau)

    @property
    def required_energy(self) -> float:
        """All: a module may keep every direction while another keeps none."""
        return 1.0

    @property
    def per_module(self) -> bool:
        """Never: modules share the threshold."""
        return False

    def __call__(self, spectra: Mapping[str, Spectrum], /) -> Mapping[str, int]:
        """The rank of each module. Cost: O(K log K) for K directions in all."""
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
    """The most energy within a number of bytes, by the same greedy order as `GlobalEnergyThreshold`.

    A module of rank 0 is stored with rank 1, since PEFT cannot leave out a module: every module takes at least the
    bytes of one direction, and gets that direction.

    Args:
        nbytes: of all factors together, as stored.
        itemsize: bytes of one stored number.

    Raises:
        ConfigurationError: on use, where not even rank 1 everywhere fits.
    """

    nbytes: int
    itemsize: int = 4

    @property
    def required_energy(self) -> float:
        """All: a module may keep every direction."""
        return 1.0

    @property
    def per_module(self) -> bool:
        """Never: modules share the budget."""
        return False

    def __call__(self, spectra: Mapping[str, Spectrum], /) -> Mapping[str, int]:
        """The rank of each module. Cost: O(K log K) for K directions in all."""
        prices = {name: sum(spectrum.shape) * self.itemsize for name, spectrum in spectra.items()}
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
class _Direction:
    module: str
    number: int
    energy: float
    density: float


def _by_energy_per_parameter(spectra: Mapping[str, Spectrum]) -> list[_Direction]:
    """Every resolved direction of every module, the most energy per parameter first; ties by name and number."""
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
