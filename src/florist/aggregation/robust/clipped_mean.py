"""The weighted mean of updates, none of which is longer than the median."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float64
from torch import Tensor

from florist.aggregation.robust.rule import bounded_weights, lower_median, most_hostile, norms_of, require_fraction


@dataclass(frozen=True, slots=True)
class NormClippedMean:
    """Updates that are longer than the median norm of the round are scaled down to it, and averaged.

    The result is never longer than the median norm, which fewer than half of the clients cannot raise beyond what an
    honest client sent. It says nothing of where hostile updates point: a group of them still moves the mean by its
    share of the weights, in any direction. Half of the honest clients are scaled down too.

    Source: clipping of clients' updates as in DP-FedAvg, arXiv:1710.06963, with the median of the round for the bound,
    which needs no server-side tuning (arXiv:1905.03871 tracks a quantile for the same reason).

    Args:
        hostile: the largest fraction of hostile clients; it bounds the weights (`bounded_weights`).

    Raises:
        ConfigurationError: the fraction is not in [0, 0.5).

    >>> import torch
    >>> inner = torch.diag(torch.tensor([1.0, 1.0, 100.0], dtype=torch.float64))  # norms 1, 1 and 10
    >>> [round(weight, 3) for weight in NormClippedMean()(inner, [0.4, 0.4, 0.2])]
    [0.4, 0.4, 0.02]
    """

    hostile: float = 0.25

    def __post_init__(self) -> None:
        require_fraction(self.hostile)

    def __call__(self, inner: Float64[Tensor, "clients clients"], weights: Sequence[float], /) -> tuple[float, ...]:
        """The bounded weights, each times how far its update is scaled down.

        Cost: O(K log K) for K clients.
        """
        norms = norms_of(inner)
        bound = lower_median(norms)
        own = bounded_weights(weights, most_hostile(self.hostile, len(weights)))
        return tuple(
            weight if norm <= bound else weight * (bound / norm)
            for weight, norm in zip(own, norms.tolist(), strict=True)
        )
