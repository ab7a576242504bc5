"""FedEx-LoRA: the means of the halves, and beside them the residual that makes them exact."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from florist.aggregation.certifying import certified_broadcast, certify_error, frobenius_norm
from florist.aggregation.halves import averaged_halves, exact_stack
from florist.aggregation.updates import accepted_updates, module_names
from florist.aggregation.weighted_sum import module_parts
from florist.factors import AdapterState, LoraFactor, stack
from florist.linalg import WeightedFactor, decompose, residual_norm
from florist.linalg.thin_svd import rounding_floor
from florist.rounds import Broadcast, ClientUpdate, ClientWork, ModuleCertificate


@dataclass(frozen=True, slots=True)
class FedEx:
    """The server sends FedIT's means, which clients train on from, and the residual, which they add.

    The method is exact: ``mean(B) mean(A) + (sum_k w_k B_k A_k - mean(B) mean(A))`` is the exact sum.

    Source: FedEx-LoRA, arXiv:2410.09432, calls that difference the residual error term and adds it to the base weights
    as a dense matrix. florist deviates: it sends the residual as factors of its numerical rank, at most R + r, which
    clients add to the frozen global adapter; it leaves out what lies below the rounding of the whole update; and it
    pads unlike ranks with zeros like `FedIt`.

    >>> import torch
    >>> from florist import AdapterState, ClientUpdate, FedEx, LoraFactor
    >>> def site(name, num_examples, B, A):
    ...     adapter = AdapterState.of({"layer": LoraFactor(torch.tensor(B), torch.tensor(A))})
    ...     return ClientUpdate(name, adapter, num_examples, round_number=1)
    >>> updates = [site("a", 3, [[1.0], [0.0]], [[1.0, 0.0]]), site("b", 1, [[0.0], [1.0]], [[0.0, 1.0]])]
    >>> broadcast = FedEx()(updates)
    >>> exact = broadcast.continued["layer"].delta_weight() + broadcast.shared["layer"].delta_weight()
    >>> torch.allclose(exact, torch.tensor([[0.75, 0.0], [0.0, 0.25]]), atol=1e-6)
    True
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

        Cost: that of `linalg.decompose` for every module, at rank K r and in float64, and of `linalg.residual_norm`.
        """
        accepted = accepted_updates(updates)
        means: dict[str, LoraFactor] = {}
        residuals: dict[str, LoraFactor] = {}
        modules: dict[str, ModuleCertificate] = {}
        for name in module_names(accepted):
            halves = averaged_halves(accepted, name)
            means[name] = halves.mean
            norm = frobenius_norm(exact_stack(accepted, name))
            residuals[name] = _compressed(halves.residual, norm, halves.mean.B.dtype)
            # Nothing but rounding is left out of the residual, and no formula says how large that is.
            error = residual_norm(module_parts(accepted, name), stack([means[name], residuals[name]]))
            rank = means[name].rank + residuals[name].rank
            modules[name] = certify_error(accepted, name, rank, norm=norm, error=error)
        return certified_broadcast(
            self.work, accepted, modules, shared=AdapterState.of(residuals), continued=AdapterState.of(means)
        )


def _compressed(residual: LoraFactor, norm: float, dtype: torch.dtype) -> LoraFactor:
    """The residual at its numerical rank in `dtype`.

    Where clients agree, the residual is nothing but rounding of the update, whose norm is `norm`, and has full rank.
    """
    svd = decompose([WeightedFactor(1.0, residual.spec, lambda: residual)])
    above_rounding = int((svd.S > rounding_floor(dtype) * norm).sum())
    return svd.factor(min(svd.spectrum.numerical_rank, above_rounding)).to(dtype=dtype)
