"""FedEx-LoRA: the means of the halves, and beside them exactly what they lack."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from florist.aggregation.certifying import broadcast, certify_error, frobenius_norm
from florist.aggregation.halves import exact_stack, mean_of_halves
from florist.aggregation.updates import (
    accepted_updates,
    module_names,
)
from florist.factors import AdapterState, LoraFactor
from florist.linalg import WeightedFactor, decompose
from florist.linalg.thin_svd import rounding_floor
from florist.rounds import Broadcast, ClientUpdate, ClientWork, ModuleCertificate


@dataclass(frozen=True, slots=True)
class FedEx:
    """FedIT's means, which clients train on from, and the residual, which they add to the frozen global adapter.

    Exact: ``mean(B) mean(A) + (sum_k w_k B_k A_k - mean(B) mean(A))`` is the exact sum.

    Source: FedEx-LoRA, arXiv:2410.09432, which names that difference the residual error term. Deviations: it is sent as
    factors of its numerical rank, at most R + r, and added to a frozen adapter, where the paper adds a dense matrix to
    the base weights; what lies below the rounding of the update as a whole is left out; unlike ranks are zero-padded
    as in `FedIt`.
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

        Cost: that of `linalg.decompose` in float64 a module, at rank K r.
        """
        accepted = accepted_updates(updates)
        means: dict[str, LoraFactor] = {}
        residuals: dict[str, LoraFactor] = {}
        modules: dict[str, ModuleCertificate] = {}
        for name in module_names(accepted):
            means[name], lacking = mean_of_halves(accepted, name)
            norm = frobenius_norm(exact_stack(accepted, name))
            residuals[name], error = _residual(lacking, norm, means[name].B.dtype)
            rank = means[name].rank + residuals[name].rank
            modules[name] = certify_error(accepted, name, rank, norm=norm, error=error)
        return broadcast(
            self.work, accepted, modules, shared=AdapterState.of(residuals), continued=AdapterState.of(means)
        )


def _residual(lacking: LoraFactor, norm: float, dtype: torch.dtype) -> tuple[LoraFactor, float]:
    """(the residual in `dtype`, the norm of what was left out of it)."""
    svd = decompose([WeightedFactor(1.0, lacking.spec, lambda: lacking)])
    # Clients that agree leave a residual of nothing but rounding, which would have full rank.
    above_rounding = int((svd.S > rounding_floor(dtype) * norm).sum())
    rank = min(svd.spectrum.numerical_rank, above_rounding)
    return svd.factor(rank).to(dtype=dtype), svd.spectrum.discarded_energy(rank) ** 0.5
