"""FedIT: federated averaging of B and of A, each on its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from florist.aggregation.certifying import certified_broadcast, certify_error, error_above_rounding, frobenius_norm
from florist.aggregation.halves import averaged_halves, exact_stack
from florist.aggregation.updates import accepted_updates, module_names
from florist.aggregation.weighted_sum import module_parts
from florist.factors import AdapterState, LoraFactor
from florist.rounds import Broadcast, ClientUpdate, ClientWork, ModuleCertificate


@dataclass(frozen=True, slots=True)
class FedIt:
    """The server sends the weighted mean of B and the weighted mean of A, and clients train on from them.

    The method is not exact: ``mean(B) mean(A)`` is not the mean of ``B A`` unless the clients agree. The certificate
    gives the difference. All clients start from one A, since the mean of halves in unlike bases means nothing.

    Source: FedIT, arXiv:2305.05644, is FedAvg (arXiv:1602.05629, algorithm 1) on the adapter: it sends
    ``sum_k w_k B_k`` and ``sum_k w_k A_k``. For unlike ranks florist follows HetLoRA (arXiv:2401.06432): it pads halves
    with zeros to the largest rank, and each client takes as many components as its own rank. It deviates from HetLoRA
    in that weights are shares of the examples, not of the norms, and ranks are not pruned. A client's scaling is folded
    into its B before the mean is taken, so that unlike scalings count as they act.

    >>> import torch
    >>> from florist import AdapterState, ClientUpdate, FedIt, LoraFactor
    >>> def site(name, num_examples, B, A):
    ...     adapter = AdapterState.of({"layer": LoraFactor(torch.tensor(B), torch.tensor(A))})
    ...     return ClientUpdate(name, adapter, num_examples, round_number=1)
    >>> updates = [site("a", 3, [[1.0], [0.0]], [[1.0, 0.0]]), site("b", 1, [[0.0], [1.0]], [[0.0, 1.0]])]
    >>> broadcast = FedIt()(updates)
    >>> broadcast.continued["layer"].B, broadcast.continued["layer"].A
    (tensor([[0.7500],
            [0.2500]]), tensor([[0.7500, 0.2500]]))
    >>> f"{broadcast.certificate.relative_error:.2f}"
    '0.47'
    """

    @property
    def work(self) -> ClientWork:
        """Clients train both halves, from one A."""
        return ClientWork(shared_rows=True)

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        """Aggregate the updates of one round.

        Raises:
            InvalidUpdateError, IncompatibleAdaptersError: `updates.accepted_updates` refuses the updates.
            NonFiniteUpdateError: a factor holds NaN or infinity. The message names the client and the module.

        Cost: O(K r (m + n)) a module for the means of K clients, and O(K^2 r^2 (m + n)) for the certificate.
        """
        accepted = accepted_updates(updates)
        factors: dict[str, LoraFactor] = {}
        modules: dict[str, ModuleCertificate] = {}
        for name in module_names(accepted):
            halves = averaged_halves(accepted, name)
            factors[name] = halves.mean
            norm = frobenius_norm(exact_stack(accepted, name))
            found, parts = frobenius_norm(halves.residual), partial(module_parts, accepted, name)
            error = error_above_rounding(found, parts, halves.mean, rounded=[halves.magnitude])
            modules[name] = certify_error(accepted, name, factors[name].rank, norm=norm, error=error)
        return certified_broadcast(self.work, accepted, modules, continued=AdapterState.of(factors))
