"""Linear rounds: B is trained along rows of A that everybody derives, and the sum is cut and added."""

from collections.abc import Sequence
from dataclasses import dataclass

from florist.aggregation.along_rows import sum_along_rows
from florist.aggregation.certifying import certified_broadcast, certify_error
from florist.aggregation.cutting import cut_by_rule
from florist.aggregation.updates import accepted_updates, module_names
from florist.aggregation.weighted_sum import decompose_factor
from florist.factors import AdapterState, LoraFactor
from florist.linalg import ThinSvd, WeightedFactor
from florist.ranks import OptimalShrinkage, RankRule
from florist.rounds import Broadcast, ClientUpdate, ClientWork, ModuleCertificate, Trained


@dataclass(frozen=True, slots=True)
class LinearRounds:
    """The server sends the leading directions of the exact sum, and clients add them; they upload B alone.

    In each round all clients hold the same orthogonal rows of A, which everybody derives from the last broadcast and
    the seed of the round (`federation.local_init.Agreed`). A client of smaller rank holds the first of them. The sum is
    therefore linear in what is uploaded, ``sum_k w_k B_k A_k = (sum_k w_k B_k) A``, exactly and for unlike ranks.
    Before `rank_rule` cuts it, it has the largest rank of a client, not the sum of the ranks.

    Source: florist's own. It differs from FFA-LoRA (arXiv:2403.12313) in that A follows the global update and a client
    trains a new B in each round, and from FLoRIST (arXiv:2506.09199) in that A is not trained.

    Args:
        rank_rule: the rule that says how many directions each module keeps.
        shrinkage: what the kept directions get in the place of their singular values, where noise of a known size has
            made them larger; by default they stay, and the broadcast is the best approximation of its rank. What it
            takes off is in the error that is certified.

    >>> import torch
    >>> from florist import AdapterState, ClientUpdate, EnergyThreshold, LinearRounds, LoraFactor
    >>> A = torch.eye(2, 3)
    >>> def site(name, num_examples, B):
    ...     return ClientUpdate(name, AdapterState.of({"layer": LoraFactor(torch.tensor(B), A)}), num_examples, 1)
    >>> updates = [site("a", 3, [[1.0, 0.0], [0.0, 0.0]]), site("b", 1, [[0.0, 0.0], [0.0, 1.0]])]
    >>> broadcast = LinearRounds(EnergyThreshold(0.8))(updates)
    >>> broadcast.shared["layer"].rank, f"{broadcast.certificate.relative_error:.2f}", broadcast.certificate.bytes_in
    (1, '0.32', 32)
    """

    rank_rule: RankRule
    shrinkage: OptimalShrinkage | None = None

    @property
    def work(self) -> ClientWork:
        """Clients train B alone, along rows of A that everybody derives."""
        return ClientWork(Trained.B, shared_rows=True, agreed_rows=True)

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        """Aggregate the updates of one round.

        Raises:
            InvalidUpdateError: two clients differ in a row of A, or `updates.accepted_updates` refuses the updates.
            IncompatibleAdaptersError: `updates.accepted_updates` refuses the updates.
            NonFiniteUpdateError: a factor holds NaN or infinity. The message names the client and the module.

        Cost: a pass over the uploads, and that of `linalg.decompose` at the largest rank for every module.
        """
        accepted = accepted_updates(updates)

        def decompose(name: str, energy: float) -> ThinSvd:
            return decompose_factor(sum_along_rows(accepted, name)[0], name, energy)

        factors: dict[str, LoraFactor] = {}
        modules: dict[str, ModuleCertificate] = {}

        def exact(name: str) -> list[WeightedFactor]:
            total, B = sum_along_rows(accepted, name)
            factor = LoraFactor(B, total.A.double())
            return [WeightedFactor(1.0, factor.spec, lambda: factor)]

        for cut in cut_by_rule(self.rank_rule, module_names(accepted), decompose, exact, self.shrinkage):
            factors[cut.module] = cut.factor
            modules[cut.module] = certify_error(accepted, cut.module, cut.factor.rank, norm=cut.norm, error=cut.error)
        return certified_broadcast(self.work, accepted, modules, shared=AdapterState.of(factors))
