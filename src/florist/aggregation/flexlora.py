"""FlexLoRA: the singular value decomposition of the exact sum, from which each client takes its rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from florist.aggregation.certifying import certified_broadcast, certify_error
from florist.aggregation.updates import accepted_updates, module_names
from florist.aggregation.weighted_sum import decompose_module, module_parts
from florist.errors import ConfigurationError
from florist.factors import AdapterState, LoraFactor
from florist.linalg import cut_norms
from florist.rounds import Broadcast, ClientUpdate, ClientWork, ModuleCertificate


@dataclass(frozen=True, slots=True)
class FlexLora:
    """The server sends the leading components of the exact sum, and clients train on from the first of them.

    Components are in descending order, so that the first r of them are the best approximation of rank r. One adapter
    therefore holds the cut of every client, also of one that was not in the round: a client takes as many components as
    its rank.

    Source: FlexLoRA, arXiv:2402.11505, cuts ``SVD(sum_k w_k B_k A_k)`` to the rank of each client. florist deviates: it
    decomposes the factors (`linalg.decompose`), which gives the numbers of the paper's dense sum, and splits the
    singular values evenly over both halves.

    Args:
        max_rank: how many components are sent. More than the largest rank of a client are of no use.

    Raises:
        ConfigurationError: `max_rank` is below 1.

    >>> import torch
    >>> from florist import AdapterState, ClientUpdate, FlexLora, LoraFactor
    >>> def site(name, num_examples, B, A):
    ...     adapter = AdapterState.of({"layer": LoraFactor(torch.tensor(B), torch.tensor(A))})
    ...     return ClientUpdate(name, adapter, num_examples, round_number=1)
    >>> updates = [site("a", 3, [[1.0], [0.0]], [[1.0, 0.0]]), site("b", 1, [[0.0], [1.0]], [[0.0, 1.0]])]
    >>> broadcast = FlexLora(max_rank=1)(updates)
    >>> broadcast.continued["layer"].rank, f"{broadcast.certificate.relative_error:.2f}"
    (1, '0.32')
    """

    max_rank: int

    def __post_init__(self) -> None:
        if self.max_rank < 1:
            raise ConfigurationError(f"expected the largest rank of any client, at least 1, got {self.max_rank}")

    @property
    def work(self) -> ClientWork:
        """Clients train both halves."""
        return ClientWork()

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        """Aggregate the updates of one round.

        Raises:
            InvalidUpdateError, IncompatibleAdaptersError: `updates.accepted_updates` refuses the updates.
            NonFiniteUpdateError: a factor holds NaN or infinity. The message names the client and the module.

        Cost: that of `linalg.decompose` for every module.
        """
        accepted = accepted_updates(updates)
        factors: dict[str, LoraFactor] = {}
        modules: dict[str, ModuleCertificate] = {}
        for name in module_names(accepted):
            svd = decompose_module(accepted, name, energy=1.0)
            rank = min(svd.spectrum.numerical_rank, self.max_rank)
            factors[name] = svd.factor(rank)
            norm, error = cut_norms(partial(module_parts, accepted, name), svd.spectrum, factors[name])
            modules[name] = certify_error(accepted, name, rank, norm=norm, error=error)
        return certified_broadcast(self.work, accepted, modules, continued=AdapterState.of(factors))
