"""FedSVD: B is trained and averaged, and the server makes the rows of A orthonormal anew."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from florist.aggregation.along_rows import sum_along_rows
from florist.aggregation.certifying import certified_broadcast, certify_error, frobenius_norm
from florist.aggregation.updates import accepted_updates, module_names
from florist.factors import AdapterState, LoraFactor, stack
from florist.rounds import Broadcast, ClientUpdate, ClientWork, ModuleCertificate, Trained


@dataclass(frozen=True, slots=True)
class FedSvd:
    """The server decomposes the mean of B along A; clients train on from ``B = U S``, along ``A = V^T``.

    With ``mean(B) A = U S V^T``, nothing changes in the product, while the rows of A become orthonormal and come in the
    order of their singular values. Clients train and upload B alone; the server sends both halves. The method is exact
    while all clients hold the same A.

    Source: FedSVD, arXiv:2505.12805, which makes A anew in each round, as florist does, or less often. As in its
    published code, A is random and not yet orthonormal in the first round, and all singular values go into B. florist
    deviates: it decomposes the factors instead of the product, which also says which rows follow where the product has
    a smaller rank than A: they complete the space of the rows of A. The paper does not treat unlike ranks: a client
    of smaller rank holds the first components, and its B counts as zero in the others; where no client of the largest
    rank replied, one that has more rows than were sent draws the rest at random, as in the first round. There is no
    differential privacy.

    >>> import torch
    >>> from florist import AdapterState, ClientUpdate, FedSvd, LoraFactor
    >>> A = torch.tensor([[3.0, 4.0]])
    >>> def site(name, num_examples, B):
    ...     return ClientUpdate(name, AdapterState.of({"layer": LoraFactor(torch.tensor(B), A)}), num_examples, 1)
    >>> continued = FedSvd()([site("a", 3, [[1.0], [0.0]]), site("b", 1, [[0.0], [1.0]])]).continued["layer"]
    >>> continued.A.abs(), continued.delta_weight()
    (tensor([[0.6000, 0.8000]]), tensor([[2.2500, 3.0000],
            [0.7500, 1.0000]]))
    """

    @property
    def work(self) -> ClientWork:
        """Clients train B alone, over one A, which the server moves."""
        return ClientWork(Trained.B, shared_rows=True, moved_rows=True)

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        """Aggregate the updates of one round.

        Raises:
            InvalidUpdateError: two clients differ in a row of A, or `updates.accepted_updates` refuses the updates.
            IncompatibleAdaptersError: `updates.accepted_updates` refuses the updates.
            NonFiniteUpdateError: a factor holds NaN or infinity. The message names the client and the module.

        Cost: O(K r (m + n)) a module for the mean of K clients, and O(r^2 (m + n)) in float64 for the decomposition.
        """
        accepted = accepted_updates(updates)
        factors: dict[str, LoraFactor] = {}
        modules: dict[str, ModuleCertificate] = {}
        for name in module_names(accepted):
            total, B = sum_along_rows(accepted, name)
            exact = _with_orthonormal_rows(LoraFactor(B, total.A.double()))
            sent = factors[name] = exact.to(dtype=total.A.dtype)
            rounding = stack([LoraFactor(exact.B - sent.B, exact.A), LoraFactor(sent.B.double(), exact.A - sent.A)])
            modules[name] = certify_error(
                accepted, name, sent.rank, norm=frobenius_norm(exact), error=frobenius_norm(rounding)
            )
        return certified_broadcast(self.work, accepted, modules, continued=AdapterState.of(factors))


def _with_orthonormal_rows(factor: LoraFactor) -> LoraFactor:
    """The same product with ``B = U S`` and ``A = V^T``; it has as many components, or n where that is less."""
    Q, R = torch.linalg.qr(factor.A.T)
    core = factor.B @ R.T
    # All of Wh is wanted, which is square in the thin SVD unless the core is wide; then U is the small one.
    U, S, Wh = torch.linalg.svd(core, full_matrices=core.shape[0] < core.shape[1])
    B = U[:, : S.numel()] * S
    return LoraFactor(torch.cat([B, B.new_zeros(B.shape[0], Wh.shape[0] - S.numel())], dim=1), Wh @ Q.T)
