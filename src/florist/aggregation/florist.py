"""FLoRIST: the exact weighted sum, cut to the rank that a rule chooses."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from florist.aggregation.certifying import certified_broadcast, certify_error
from florist.aggregation.cutting import cut_by_rule
from florist.aggregation.updates import accepted_updates, module_names
from florist.aggregation.weighted_sum import decompose_module, module_parts
from florist.factors import AdapterState, LoraFactor
from florist.ranks import RankRule
from florist.rounds import Broadcast, ClientUpdate, ClientWork, ModuleCertificate


@dataclass(frozen=True, slots=True)
class Florist:
    """The server sends the leading directions of the exact sum as one compact adapter, and clients add it.

    For each module, ``dW = sum_k w_k B_k A_k`` is stacked, which is exact and has no cross terms, decomposed from the
    factors alone, and cut to the rank that `rank_rule` chooses. Factors are read and decomposed a module at a time.

    Source: FLoRIST, arXiv:2506.09199, algorithm 1. The paper leaves the singular values in B; florist splits them
    evenly over both halves (`ThinSvd.factor`), which is the same product.

    Args:
        rank_rule: the rule that says how many directions each module keeps.

    >>> import torch
    >>> from florist import AdapterState, ClientUpdate, EnergyThreshold, Florist, LoraFactor
    >>> def site(name, num_examples, B, A):
    ...     adapter = AdapterState.of({"layer": LoraFactor(torch.tensor(B), torch.tensor(A))})
    ...     return ClientUpdate(name, adapter, num_examples, round_number=1)
    >>> updates = [site("a", 3, [[1.0], [0.0]], [[1.0, 0.0]]), site("b", 1, [[0.0], [1.0]], [[0.0, 1.0]])]
    >>> broadcast = Florist(EnergyThreshold(0.8))(updates)
    >>> broadcast.shared["layer"].rank, f"{broadcast.certificate.relative_error:.2f}"
    (1, '0.32')
    """

    rank_rule: RankRule

    @property
    def work(self) -> ClientWork:
        """Clients train both halves."""
        return ClientWork()

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        """Aggregate the updates of one round.

        Raises:
            InvalidUpdateError, IncompatibleAdaptersError: `updates.accepted_updates` refuses the updates.
            NonFiniteUpdateError: a factor holds NaN or infinity. The message names the client and the module.
        """
        accepted = accepted_updates(updates)
        factors: dict[str, LoraFactor] = {}
        modules: dict[str, ModuleCertificate] = {}
        decompose = partial(decompose_module, accepted)
        exact = partial(module_parts, accepted)
        for cut in cut_by_rule(self.rank_rule, module_names(accepted), decompose, exact):
            factors[cut.module] = cut.factor
            modules[cut.module] = certify_error(accepted, cut.module, cut.factor.rank, norm=cut.norm, error=cut.error)
        return certified_broadcast(self.work, accepted, modules, shared=AdapterState.of(factors))
