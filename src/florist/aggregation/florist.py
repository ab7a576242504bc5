"""FLoRIST: the exact weighted sum, cut to the rank that holds a fraction of the energy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from florist.aggregation.certifying import broadcast, certify_cut
from florist.aggregation.updates import (
    accepted_updates,
    module_names,
)
from florist.aggregation.weighted_sum import decompose_module
from florist.factors import AdapterState, LoraFactor
from florist.linalg.parallel import in_order
from florist.linalg.spectrum import Spectrum
from florist.ranks import RankRule
from florist.rounds import Broadcast, ClientUpdate, ClientWork, ModuleCertificate

_Compressed = tuple[str, Spectrum, LoraFactor]


@dataclass(frozen=True, slots=True)
class Florist:
    """One compact adapter for everybody, by a singular value decomposition in factor space.

    Per module ``dW = sum_k w_k B_k A_k`` is stacked (exact, no cross terms), decomposed from the factors alone, and
    cut to the rank that `rank_rule` chooses. Factors are read and decomposed a module at a time.

    Source: FLoRIST, arXiv:2506.09199, algorithm 1. Deviation: the singular values are split evenly over both
    factors (`ThinSvd.factor`), where the paper leaves them in B; the product is the same.

    Args:
        rank_rule: how many directions each module keeps.
    """

    rank_rule: RankRule

    @property
    def work(self) -> ClientWork:
        """Both halves."""
        return ClientWork()

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        """Aggregate one round.

        Raises:
            InvalidUpdateError, IncompatibleAdaptersError: as `aggregation.updates.accepted_updates`.
            NonFiniteUpdateError: a factor holds NaN or infinity; names client and module.
        """
        accepted = accepted_updates(updates)
        compress = self._one_by_one if self.rank_rule.per_module else self._all_together
        factors: dict[str, LoraFactor] = {}
        modules: dict[str, ModuleCertificate] = {}
        for name, seen, factor in compress(accepted, module_names(accepted)):
            factors[name] = factor
            modules[name] = certify_cut(accepted, name, seen, factor.rank)
        return broadcast(self.work, accepted, modules, shared=AdapterState.of(factors))

    def _one_by_one(self, updates: Sequence[ClientUpdate], names: Sequence[str]) -> Iterator[_Compressed]:
        def compress(name: str) -> _Compressed:
            svd = decompose_module(updates, name, self.rank_rule.required_energy)
            return name, svd.spectrum, svd.factor(self.rank_rule({name: svd.spectrum})[name])

        return in_order(compress, names)

    def _all_together(self, updates: Sequence[ClientUpdate], names: Sequence[str]) -> Iterator[_Compressed]:
        # The rule needs every spectrum before it names a rank. To hold every module's singular vectors until then
        # could take more memory than all inputs; decomposing twice takes twice the time and one module's memory.
        energy = self.rank_rule.required_energy

        def look(name: str) -> Spectrum:
            return decompose_module(updates, name, energy).spectrum

        spectra = dict(zip(names, in_order(look, names), strict=True))
        ranks = self.rank_rule(spectra)

        def compress(name: str) -> _Compressed:
            return name, spectra[name], decompose_module(updates, name, energy).factor(ranks[name])

        return in_order(compress, names)
