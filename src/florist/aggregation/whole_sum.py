"""The exact sum as a stack, for a communication that cuts and certifies it itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from florist.aggregation.certifying import certified_broadcast, certify_error
from florist.aggregation.updates import accepted_updates, module_names, weighted_factors
from florist.factors import AdapterState, LoraFactor, stack
from florist.rounds import Broadcast, ClientUpdate, ClientWork, ModuleCertificate


@dataclass(frozen=True, slots=True)
class WholeSum:
    """The shared adapter stacks every ``w_k B_k`` and ``A_k``, as FLoRA's does, and its norms are left open.

    With feedback the server adds to the sum what it held back before, and only then cuts it. The norm and the error of
    what is due are certified there; those of the sum alone, which nobody is sent, would take longer than all else.
    """

    @property
    def work(self) -> ClientWork:
        """Clients train both halves."""
        return ClientWork()

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        """Stack the updates of one round.

        The certificate has NaN in the place of norms.

        Raises:
            InvalidUpdateError, IncompatibleAdaptersError: `updates.accepted_updates` refuses the updates.
            NonFiniteUpdateError: a saved parameter holds NaN or infinity.

        Cost: a copy of the uploads.
        """
        accepted = accepted_updates(updates)
        factors: dict[str, LoraFactor] = {}
        modules: dict[str, ModuleCertificate] = {}
        for name in module_names(accepted):
            factors[name] = stack([factor.scaled(weight) for weight, factor in weighted_factors(accepted, name)])
            modules[name] = certify_error(accepted, name, factors[name].rank, norm=math.nan, error=math.nan)
        return certified_broadcast(self.work, accepted, modules, shared=AdapterState.of(factors))
