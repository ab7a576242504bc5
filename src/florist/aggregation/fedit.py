"""FedIT: federated averaging of B and of A, each on its own."""

from collections.abc import Sequence
from dataclasses import dataclass

from florist.aggregation.certifying import broadcast, certify_error, frobenius_norm
from florist.aggregation.halves import exact_stack, mean_of_halves
from florist.aggregation.updates import (
    accepted_updates,
    module_names,
)
from florist.factors import AdapterState, LoraFactor
from florist.rounds import Broadcast, ClientUpdate, ClientWork, ModuleCertificate


@dataclass(frozen=True, slots=True)
class FedIt:
    """The weighted mean of B and the weighted mean of A; clients train on from them.

    Not exact: ``mean(B) mean(A)`` is not the mean of ``B A`` unless the clients agree. The certificate's error is that
    difference. All clients start from one A, since means of halves in unlike bases say nothing.

    Source: FedIT, arXiv:2305.05644, which is FedAvg (arXiv:1602.05629, algorithm 1) on the adapter: ``sum_k w_k B_k``
    and ``sum_k w_k A_k``. Unlike ranks are zero-padded to the largest and cut to each client's own, as in HetLoRA
    (arXiv:2401.06432); deviations from HetLoRA: weights are shares of the examples, not of the norms, and ranks are not
    pruned. Each client's scaling is folded into its B before, so that unlike scalings are averaged as they act.
    """

    @property
    def work(self) -> ClientWork:
        """Both halves, from one A."""
        return ClientWork(shared_rows=True)

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        """Aggregate one round.

        Raises:
            InvalidUpdateError, IncompatibleAdaptersError: as `aggregation.updates.accepted_updates`.
            NonFiniteUpdateError: a factor holds NaN or infinity; names client and module.

        Cost: the means O(K r (m + n)) a module, the certificate O(K^2 r^2 (m + n)).
        """
        accepted = accepted_updates(updates)
        factors: dict[str, LoraFactor] = {}
        modules: dict[str, ModuleCertificate] = {}
        for name in module_names(accepted):
            factors[name], lacking = mean_of_halves(accepted, name)
            norm = frobenius_norm(exact_stack(accepted, name))
            modules[name] = certify_error(accepted, name, factors[name].rank, norm=norm, error=frobenius_norm(lacking))
        return broadcast(self.work, accepted, modules, continued=AdapterState.of(factors))
