"""Multi-Krum: the mean of the updates that have near neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from florist.aggregation.robust.rule import bounded_weights, most_hostile, require_fraction


@dataclass(frozen=True, slots=True)
class MultiKrum:
    """Of K clients, f of which may be hostile, the K - f with the smallest scores are averaged.

    The score of an update is the sum of its squared distances to the K - f - 2 updates that are nearest to it. With
    nobody expected to be hostile, or with two clients, all are averaged. What it costs where nobody is hostile: f
    clients are left out in each round, those that are most unlike the rest, such as clients with data of their own
    kind.

    K counts the clients whose updates arrive here. f is not lowered by clients that a guard has refused in the round:
    these need not be the hostile ones, and were f smaller than the number of hostile clients that are left, some of
    them would be among the K - f.

    Source: arXiv:1703.02757, section 4 and its Multi-Krum. The paper needs K >= 2 f + 3; with fewer clients florist
    counts one neighbour more (`krum_scores`), and the guarantee of the paper is lost. It averages without weights;
    florist keeps the claimed ones, bounded (`bounded_weights`), so that with f = 0 the result is the weighted mean.

    Args:
        hostile: the largest fraction of hostile clients; f is that of K, rounded up, and fewer than half.

    Raises:
        ConfigurationError: the fraction is not in [0, 0.5).

    >>> import torch
    >>> x = torch.tensor([[1.0], [1.1], [0.9], [1000.0]], dtype=torch.float64)
    >>> [round(weight, 3) for weight in MultiKrum()(x @ x.T, [0.25] * 4)]
    [0.333, 0.333, 0.333, 0.0]
    """

    hostile: float = 0.25

    def __post_init__(self) -> None:
        require_fraction(self.hostile)

    def __call__(self, inner: Float64[Tensor, "clients clients"], weights: Sequence[float], /) -> tuple[float, ...]:
        """The bounded weights of those that are chosen, scaled to sum to 1, and 0 for the others.

        Of equal scores the earlier client is chosen. Cost: O(K^2 log K) for K clients.
        """
        count = len(weights)
        hostile = most_hostile(self.hostile, count)
        own = bounded_weights(weights, hostile)
        if hostile == 0:
            return own
        order = torch.argsort(krum_scores(inner, hostile), stable=True)
        chosen = set(order[: count - hostile].tolist())
        total = sum(weight for k, weight in enumerate(own) if k in chosen)
        return tuple(weight / total if k in chosen else 0.0 for k, weight in enumerate(own))


def krum_scores(inner: Float64[Tensor, "clients clients"], hostile: int) -> Float64[Tensor, " clients"]:
    """The sum of the squared distances of each update to the K - f - 2 others that are nearest.

    With K < 2 f + 3 it is one more, all of which may be honest. Hostile clients that send the same would otherwise be
    each other's only neighbours.
    """
    squares = inner.diagonal()
    distances = (squares[:, None] + squares - 2 * inner).clamp(min=0.0)
    distances.fill_diagonal_(torch.inf)
    count = inner.shape[0]
    neighbours = count - hostile - (2 if count >= 2 * hostile + 3 else 1)
    return torch.sort(distances, dim=1).values[:, :neighbours].sum(dim=1)
