"""Another rule, with a largest rank."""

from collections.abc import Mapping
from dataclasses import dataclass

from florist.linalg.spectrum import Spectrum
from florist.ranks.rule import RankRule, require_rank


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
    >>> from florist.ranks.byte_budget import ByteBudget
    >>> strong, weak = (Spectrum(torch.tensor(S).double(), 1e-6, shape=(8, 8)) for S in ([9.0, 8.0, 7.0], [0.2, 0.1]))
    >>> ByteBudget(256)({"strong": strong, "weak": weak})
    {'strong': 3, 'weak': 1}
    >>> Capped(ByteBudget(256), max_rank=2)({"strong": strong, "weak": weak})
    {'strong': 2, 'weak': 2}
    """

    rule: RankRule
    max_rank: int

    def __post_init__(self) -> None:
        require_rank(self.max_rank)

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
