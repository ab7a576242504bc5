"""raFLoRA: FlexLoRA's sum, with each component weighed among the clients that have it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch

from florist.aggregation.certifying import certified_broadcast, certify_error, error_above_rounding, frobenius_norm
from florist.aggregation.halves import exact_stack
from florist.aggregation.updates import accepted_updates, client_weights, module_names, weighted_factors
from florist.aggregation.weighted_sum import decompose_factor, module_parts
from florist.errors import ConfigurationError
from florist.factors import AdapterState, LoraFactor, stack
from florist.rounds import Broadcast, ClientUpdate, ClientWork, ModuleCertificate


@dataclass(frozen=True, slots=True)
class RaFlora:
    """The server sends the leading components of a sum whose weights are shares among those who have a component.

    The ranks of the clients divide the components into partitions: those that all clients have, those that all but the
    smallest have, and so on. In each, a client weighs as its share of the examples of the clients that have it. In
    FlexLoRA's sum, by contrast, a component that few clients have is averaged with the zeros of the others, in every
    round anew, until it is gone. Clients train on from the first components, as many as their rank. With equal ranks
    the method is FlexLoRA; with unlike ones it is not exact, which the certificate shows.

    Source: raFLoRA, arXiv:2602.13486: by its abstract it divides local updates into rank partitions and weighs each by
    the clients that contribute to it, and allocates by SVD as FlexLoRA, arXiv:2402.11505. florist reads that as
    follows. Component i of a client is column i of its B and row i of its A, as it trained them, and not of an SVD of
    its update. Weights are shares of the examples. Where no client of a round has the last components, they are not
    carried over from the round before. florist deviates: it decomposes factors and splits the singular values evenly
    over both halves, as for `FlexLora`; and a client without a module counts as zero in the partitions of its largest
    rank, since it is a zero update in all methods of florist.

    Args:
        max_rank: how many components are sent. More than the largest rank of a client are of no use.

    Raises:
        ConfigurationError: `max_rank` is below 1.

    >>> import torch
    >>> from florist import AdapterState, ClientUpdate, LoraFactor, RaFlora
    >>> def site(name, num_examples, B, A):
    ...     adapter = AdapterState.of({"layer": LoraFactor(torch.tensor(B), torch.tensor(A))})
    ...     return ClientUpdate(name, adapter, num_examples, round_number=1)
    >>> large = site("a", 1, [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]])
    >>> broadcast = RaFlora(max_rank=2)([large, site("b", 3, [[1.0], [0.0]], [[1.0, 0.0]])])
    >>> broadcast.continued["layer"].delta_weight().round(decimals=3)  # FlexLoRA: 0.25 at the end
    tensor([[1., 0.],
            [0., 1.]])
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

        Cost: that of `linalg.decompose` for every module, and O(R^2 (m + n)) for the certificate.
        """
        accepted = accepted_updates(updates)
        factors: dict[str, LoraFactor] = {}
        modules: dict[str, ModuleCertificate] = {}
        for name in module_names(accepted):
            total, lacking = _partitioned(accepted, name)
            svd = decompose_factor(total, name, energy=1.0)
            components = svd.factor(svd.spectrum.numerical_rank)
            factors[name] = components.leading(self.max_rank)
            missing = stack([lacking, components.trailing(self.max_rank).to(dtype=torch.float64)])
            parts = partial(module_parts, accepted, name)
            modules[name] = certify_error(
                accepted,
                name,
                factors[name].rank,
                norm=frobenius_norm(exact_stack(accepted, name)),
                error=error_above_rounding(frobenius_norm(missing), parts, factors[name], rounded=[total]),
            )
        return certified_broadcast(self.work, accepted, modules, continued=AdapterState.of(factors))


def _partitioned(updates: Sequence[ClientUpdate], module: str) -> tuple[LoraFactor, LoraFactor]:
    """The sum of the partitions in the dtype of the updates, and what it lacks of the exact sum, in float64."""
    weighted = weighted_factors(updates, module)
    largest = max(factor.rank for _, factor in weighted)
    ranks = [
        factor.rank
        if module in update.adapter.specs
        else max((spec.rank for spec in update.adapter.specs.values()), default=largest)
        for update, (_, factor) in zip(updates, weighted, strict=True)
    ]
    parts: list[LoraFactor] = []
    lacking: list[LoraFactor] = []
    for first, beyond in pairwise([0, *sorted(set(ranks) - {0})]):
        having = [k for k, rank in enumerate(ranks) if rank >= beyond]
        shares = client_weights([updates[k] for k in having])
        for k, share in zip(having, shares, strict=True):
            weight, factor = weighted[k]
            part = factor.leading(beyond).trailing(first).to(dtype=torch.float64)
            parts.append(part.scaled(share).to(dtype=factor.B.dtype))
            lacking.append(part.scaled(weight - share))
    return stack(parts), stack(lacking)
