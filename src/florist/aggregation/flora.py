"""FLoRA: the factors of all clients, stacked."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from florist.aggregation.certifying import certified_broadcast, certify_error, frobenius_norm
from florist.aggregation.updates import accepted_updates, module_names, weighted_factors
from florist.factors import AdapterState, LoraFactor, stack
from florist.rounds import Broadcast, ClientUpdate, ClientWork, ModuleCertificate


@dataclass(frozen=True, slots=True)
class Flora:
    """The server sends the stack of all factors, with the weights folded into B, and clients add it.

    The method is exact. Its broadcast is as large as all uploads together.

    Source: FLoRA, arXiv:2409.05976, eq. 4 and algorithm 1. The paper merges the stack into the base model; clients of
    florist keep it as a frozen adapter beside the base, which is the same function.

    >>> import torch
    >>> from florist import AdapterState, ClientUpdate, Flora, LoraFactor
    >>> def site(name, num_examples, B, A):
    ...     adapter = AdapterState.of({"layer": LoraFactor(torch.tensor(B), torch.tensor(A))})
    ...     return ClientUpdate(name, adapter, num_examples, round_number=1)
    >>> updates = [site("a", 3, [[1.0], [0.0]], [[1.0, 0.0]]), site("b", 1, [[0.0], [1.0]], [[0.0, 1.0]])]
    >>> broadcast = Flora()(updates)
    >>> broadcast.shared["layer"].rank, broadcast.shared["layer"].delta_weight()
    (2, tensor([[0.7500, 0.0000],
            [0.0000, 0.2500]]))
    """

    @property
    def work(self) -> ClientWork:
        """Clients train both halves."""
        return ClientWork()

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        """Aggregate the updates of one round.

        Raises:
            InvalidUpdateError, IncompatibleAdaptersError: `updates.accepted_updates` refuses the updates.
            NonFiniteUpdateError: a factor holds NaN or infinity. The message names the client and the module.

        Cost: a copy of the uploads, and O(R^2 (m + n)) a module for the norm in the certificate.
        """
        accepted = accepted_updates(updates)
        factors: dict[str, LoraFactor] = {}
        modules: dict[str, ModuleCertificate] = {}
        for name in module_names(accepted):
            weighted = weighted_factors(accepted, name)
            factors[name] = stack([factor.scaled(weight) for weight, factor in weighted])
            exact = stack([factor.to(dtype=torch.float64).scaled(weight) for weight, factor in weighted])
            rounding = LoraFactor(exact.B - factors[name].B, exact.A)
            modules[name] = certify_error(
                accepted, name, exact.rank, norm=frobenius_norm(exact), error=frobenius_norm(rounding)
            )
        return certified_broadcast(self.work, accepted, modules, shared=AdapterState.of(factors))
