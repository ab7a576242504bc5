"""FLoRA: every client's factors, stacked."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from florist.aggregation.certifying import broadcast, certify_error, frobenius_norm
from florist.aggregation.updates import (
    accepted_updates,
    module_names,
    weighted_factors,
)
from florist.factors import AdapterState, LoraFactor, stack
from florist.rounds import Broadcast, ClientUpdate, ClientWork, ModuleCertificate


@dataclass(frozen=True, slots=True)
class Flora:
    """The stack of all factors, weights folded into B: exact, and as large as all uploads together.

    Source: FLoRA, arXiv:2409.05976, eq. 4 and algorithm 1. Deviation: clients keep the stack as a frozen adapter
    beside the base model, where the paper merges it into the base; the function is the same.
    """

    @property
    def work(self) -> ClientWork:
        """Both halves."""
        return ClientWork()

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        """Aggregate one round.

        Raises:
            InvalidUpdateError, IncompatibleAdaptersError: as `aggregation.updates.accepted_updates`.
            NonFiniteUpdateError: a factor holds NaN or infinity; names client and module.

        Cost: a copy of the uploads; the certificate's norm O(R^2 (m + n)) a module.
        """
        accepted = accepted_updates(updates)
        factors: dict[str, LoraFactor] = {}
        modules: dict[str, ModuleCertificate] = {}
        for name in module_names(accepted):
            weighted = weighted_factors(accepted, name)
            factors[name] = stack([factor.scaled(weight) for weight, factor in weighted])
            exact = stack([factor.to(dtype=torch.float64).scaled(weight) for weight, factor in weighted])
            rounding = LoraFactor(exact.B - factors[name].B.double(), exact.A)
            modules[name] = certify_error(
                accepted, name, exact.rank, norm=frobenius_norm(exact), error=frobenius_norm(rounding)
            )
        return broadcast(self.work, accepted, modules, shared=AdapterState.of(factors))
