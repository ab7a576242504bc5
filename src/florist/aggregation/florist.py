"""FLoRIST: the exact weighted sum, cut to the rank that holds a fraction of the energy."""

from collections.abc import Sequence
from dataclasses import dataclass

from florist.aggregation import updates as uploads
from florist.aggregation.weighted_sum import decompose_module, spectrum
from florist.factors import AdapterState
from florist.ranks import RankRule
from florist.rounds import Broadcast, Certificate, ClientUpdate, ModuleCertificate


@dataclass(frozen=True, slots=True)
class Florist:
    """One compact adapter for everybody, by a singular value decomposition in factor space.

    Per module ``dW = sum_k w_k B_k A_k`` is stacked (exact, no cross terms), decomposed from the factors alone, and
    cut to the rank that `rank_rule` chooses; the dense matrix is never formed.

    Source: FLoRIST, arXiv:2506.09199, algorithm 1. Deviation: the singular values are split evenly over both
    factors (`ThinSvd.factor`), where the paper leaves them in B; the product is the same.

    Args:
        rank_rule: how many directions each module keeps.
    """

    rank_rule: RankRule

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        """Aggregate one round.

        Raises:
            InvalidUpdateError, IncompatibleAdaptersError: as `aggregation.updates.accepted`.
            NonFiniteUpdateError: a factor holds NaN or infinity; names client and module.
        """
        accepted = uploads.accepted(updates)
        names = uploads.modules(accepted)
        svds = {name: decompose_module(accepted, name, self.rank_rule.required_energy) for name in names}
        spectra = {name: spectrum(svd) for name, svd in svds.items()}
        ranks = self.rank_rule(spectra)
        shared = AdapterState.of({name: svd.factor(ranks[name]) for name, svd in svds.items()})
        full_parameters = uploads.average(accepted)
        certificate = Certificate(
            modules={
                name: ModuleCertificate(
                    shape=spectra[name].shape,
                    rank=ranks[name],
                    input_rank=sum(u.adapter.specs[name].rank for u in accepted if name in u.adapter.specs),
                    energy_kept=spectra[name].kept_energy(ranks[name]),
                    norm=spectra[name].total_energy ** 0.5,
                    error=spectra[name].discarded_energy(ranks[name]) ** 0.5,
                    absent_from=tuple(u.client_id for u in accepted if name not in u.adapter.specs),
                )
                for name in names
            },
            bytes_in=sum(update.nbytes for update in accepted),
            bytes_out=shared.nbytes + sum(tensor.nbytes for tensor in full_parameters.values()),
        )
        return Broadcast(shared=shared, certificate=certificate, full_parameters=full_parameters)
