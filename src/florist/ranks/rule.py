"""What a rank rule is, and the checks that several rules make of their settings."""

from collections.abc import Mapping
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


def require_fraction(tau: float) -> None:
    """Check a fraction of the energy.

    Raises:
        ConfigurationError: it lies outside of (0, 1].
    """
    if not 0 < tau <= 1:
        raise ConfigurationError(f"expected 0 < tau <= 1 (a fraction of the energy to keep), got {tau}")


def require_rank(rank: int) -> None:
    """Check a rank.

    Raises:
        ConfigurationError: it is below 1.
    """
    if rank < 1:
        raise ConfigurationError(f"expected a rank of at least 1, got {rank}")
