"""FlexLoRA: the singular value decomposition of the exact sum, from which each client takes its rank."""

from collections.abc import Sequence
from dataclasses import dataclass

from florist.aggregation.certifying import broadcast, certify_cut
from florist.aggregation.updates import (
    accepted_updates,
    module_names,
)
from florist.aggregation.weighted_sum import decompose_module
from florist.errors import ConfigurationError
from florist.factors import AdapterState, LoraFactor
from florist.rounds import Broadcast, ClientUpdate, ClientWork, ModuleCertificate


@dataclass(frozen=True, slots=True)
class FlexLora:
    """The leading components of the exact sum; every client trains on from the first of them, as many as its rank.

    Components are in descending order, so that the first r of them are the best approximation of rank r: one adapter
    holds every client's own cut, also that of a client which was not in the round.

    Source: FlexLoRA, arXiv:2402.11505: ``SVD(sum_k w_k B_k A_k)``, cut to each client's rank. Deviations: it is taken
    from the factors (`linalg.decompose`), where the paper forms the dense sum, which gives the same numbers; the
    singular values are split evenly over both halves.

    Args:
        max_rank: the largest rank that any client trains.

    Raises:
        ConfigurationError: it is below 1.
    """

    max_rank: int

    def __post_init__(self) -> None:
        if self.max_rank < 1:
            raise ConfigurationError(f"expected the largest rank of any client, at least 1, got {self.max_rank}")

    @property
    def work(self) -> ClientWork:
        """Both halves."""
        return ClientWork()

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        """Aggregate one round.

        Raises:
            InvalidUpdateError, IncompatibleAdaptersError: as `aggregation.updates.accepted_updates`.
            NonFiniteUpdateError: a factor holds NaN or infinity; names client and module.

        Cost: that of `linalg.decompose` a module.
        """
        accepted = accepted_updates(updates)
        factors: dict[str, LoraFactor] = {}
        modules: dict[str, ModuleCertificate] = {}
        for name in module_names(accepted):
            svd = decompose_module(accepted, name, energy=1.0)
            rank = min(svd.spectrum.numerical_rank, self.max_rank)
            factors[name] = svd.factor(rank)
            modules[name] = certify_cut(accepted, name, svd.spectrum, rank)
        return broadcast(self.work, accepted, modules, continued=AdapterState.of(factors))
