"""FFA-LoRA: A stays as it was drawn; B is trained and averaged."""

from collections.abc import Sequence
from dataclasses import dataclass

from florist.aggregation.along_rows import sum_along_rows
from florist.aggregation.certifying import certified_broadcast, certify_error, frobenius_norm
from florist.aggregation.updates import accepted_updates, module_names
from florist.factors import AdapterState, LoraFactor
from florist.rounds import Broadcast, ClientUpdate, ClientWork, ModuleCertificate, Trained


@dataclass(frozen=True, slots=True)
class FfaLora:
    """The server sends the weighted mean of B, over one random A that nobody trains or sends.

    The method is exact: ``sum_k w_k B_k A = (sum_k w_k B_k) A`` while all clients hold the same A. A client of smaller
    rank holds the first rows of A, and its B counts as zero in the others. Clients train on from the mean.

    Source: FFA-LoRA, arXiv:2403.12313, sends ``sum_k w_k B_k``. B starts at zero and A at random, so that training
    starts from the function of the base model. The paper does not treat unlike ranks.

    >>> import torch
    >>> from florist import AdapterState, ClientUpdate, FfaLora, LoraFactor
    >>> A = torch.tensor([[1.0, 2.0]])
    >>> def site(name, num_examples, B):
    ...     return ClientUpdate(name, AdapterState.of({"layer": LoraFactor(torch.tensor(B), A)}), num_examples, 1)
    >>> broadcast = FfaLora()([site("a", 3, [[1.0], [0.0]]), site("b", 1, [[0.0], [1.0]])])
    >>> broadcast.continued["layer"].B, broadcast.continued["layer"].A
    (tensor([[0.7500],
            [0.2500]]), tensor([[1., 2.]]))
    """

    @property
    def work(self) -> ClientWork:
        """Clients train B alone, over one A for all clients and rounds."""
        return ClientWork(Trained.B, shared_rows=True, constant_rows=True)

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        """Aggregate the updates of one round.

        Raises:
            InvalidUpdateError: two clients differ in a row of A, or `updates.accepted_updates` refuses the updates.
            IncompatibleAdaptersError: `updates.accepted_updates` refuses the updates.
            NonFiniteUpdateError: a factor holds NaN or infinity. The message names the client and the module.

        Cost: O(K r (m + n)) a module for the mean of K clients, and O(K r^2 (m + n)) for the certificate.
        """
        accepted = accepted_updates(updates)
        factors: dict[str, LoraFactor] = {}
        modules: dict[str, ModuleCertificate] = {}
        for name in module_names(accepted):
            factors[name], B = sum_along_rows(accepted, name)
            A = factors[name].A
            exact = LoraFactor(B, A.double())
            rounding = LoraFactor(B - factors[name].B.double(), A.double())
            modules[name] = certify_error(
                accepted, name, A.shape[0], norm=frobenius_norm(exact), error=frobenius_norm(rounding)
            )
        return certified_broadcast(self.work, accepted, modules, continued=AdapterState.of(factors))
