"""FFA-LoRA: A stays as it was drawn, B is trained and averaged."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from florist.aggregation.certifying import broadcast, certify_error, frobenius_norm
from florist.aggregation.updates import (
    accepted_updates,
    module_names,
    weighted_factors,
)
from florist.errors import InvalidUpdateError
from florist.factors import AdapterState, LoraFactor
from florist.rounds import Broadcast, ClientUpdate, ClientWork, ModuleCertificate, Trained


@dataclass(frozen=True, slots=True)
class FfaLora:
    """The weighted mean of B, over one random A that nobody trains or sends; clients train on from it.

    Exact: ``sum_k w_k B_k A = (sum_k w_k B_k) A`` while all clients hold the same A. A client of smaller rank holds its
    first rows, and its B counts as zero in the others.

    Source: FFA-LoRA, arXiv:2403.12313: ``sum_k w_k B_k``. B starts at zero and A at random, so that training
    starts from the base model's function. Deviation: unlike ranks, which the paper does not treat.
    """

    @property
    def work(self) -> ClientWork:
        """B alone, over one A for all clients and rounds."""
        return ClientWork(Trained.B, shared_rows=True, constant_rows=True)

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        """Aggregate one round.

        Raises:
            InvalidUpdateError, IncompatibleAdaptersError: as `accepted_updates`; and two clients differ in a row of A.
            NonFiniteUpdateError: a factor holds NaN or infinity; names client and module.

        Cost: O(K r (m + n)) a module; the certificate O(K r^2 (m + n)).
        """
        accepted = accepted_updates(updates)
        factors: dict[str, LoraFactor] = {}
        modules: dict[str, ModuleCertificate] = {}
        for name in module_names(accepted):
            weighted = weighted_factors(accepted, name)
            A = _common_rows(accepted, name, [factor for _, factor in weighted])
            B = sum(
                (weight * factor.padded(A.shape[0]).B.double() for weight, factor in weighted),
                start=torch.zeros(weighted[0][1].B.shape[0], A.shape[0], dtype=torch.float64),
            )
            factors[name] = LoraFactor(B.to(A.dtype), A)
            exact = LoraFactor(B, A.double())
            rounding = LoraFactor(B - factors[name].B.double(), A.double())
            modules[name] = certify_error(
                accepted, name, A.shape[0], norm=frobenius_norm(exact), error=frobenius_norm(rounding)
            )
        return broadcast(self.work, accepted, modules, continued=AdapterState.of(factors))


def _common_rows(updates: Sequence[ClientUpdate], module: str, factors: Sequence[LoraFactor]) -> torch.Tensor:
    longest = max(range(len(factors)), key=lambda k: factors[k].rank)
    for update, factor in zip(updates, factors, strict=True):
        if not torch.equal(factor.A, factors[longest].A[: factor.rank]):
            raise InvalidUpdateError(
                f"{module}: expected every client to hold the same rows of A, and {update.client_id!r} and "
                f"{updates[longest].client_id!r} differ; leave A untrained, and draw it from one seed"
            )
    return factors[longest].A
