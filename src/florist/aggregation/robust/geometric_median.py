"""The geometric median of updates: the point with the smallest sum of distances to them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from florist.aggregation.robust.rule import bounded_weights, lower_median, most_hostile, norms_of, require_fraction

SMOOTHING = 1e-6
"""The shortest distance that counts, as a fraction of the median norm: below it all updates count alike."""
_MOST_STEPS = 1000
_CONVERGED = 1e-12


@dataclass(frozen=True, slots=True)
class GeometricMedian:
    """The update that minimises ``sum_k w_k ||x - x_k||``, by the smoothed Weiszfeld algorithm.

    The median is a convex combination of the updates, ``x = sum_k c_k x_k``, so that its distance to each of them
    follows from the inner products alone: ``||x - x_k||^2 = G_kk - 2 (G c)_k + c^T G c``. As long as hostile clients
    have less than half of the weight, the median stays near the others, however far away theirs are, as long as the
    squares of their norms are finite. What it costs where nobody is hostile: clients that are far from the rest count
    less than their share.

    Source: RFA, arXiv:1912.13445, algorithm 2; the algorithm is Weiszfeld's (1937). florist deviates: it iterates to
    convergence in place of a few steps, since a step costs K^2 numbers here; the smoothing is relative to the median
    norm; it starts near the majority, since a step from the mean of updates that are 1e150 away
    only halves what they count; and the weights are bounded, since the paper trusts the claimed examples.

    Args:
        hostile: the largest fraction of hostile clients; it bounds the weights (`bounded_weights`).

    Raises:
        ConfigurationError: the fraction is not in [0, 0.5).

    >>> import torch
    >>> x = torch.tensor([[1.0], [1.1], [1000.0]], dtype=torch.float64)
    >>> weights = GeometricMedian()(x @ x.T, [1 / 3, 1 / 3, 1 / 3])
    >>> round(sum(weight * float(one) for weight, one in zip(weights, x)), 3)
    1.1
    """

    hostile: float = 0.25

    def __post_init__(self) -> None:
        require_fraction(self.hostile)

    def __call__(self, inner: Float64[Tensor, "clients clients"], weights: Sequence[float], /) -> tuple[float, ...]:
        """The coefficients of the median, which sum to 1.

        Cost: O(K^2) a step for K clients, and a few dozen steps; O(K^2 log K) before the first.
        """
        own = bounded_weights(weights, most_hostile(self.hostile, len(weights)))
        w = torch.tensor(own, dtype=torch.float64)
        norms = norms_of(inner)
        typical = lower_median(norms) or float(norms.max())
        if typical == 0 or len(own) == 1:
            return own
        shortest, squares = SMOOTHING * typical, inner.diagonal()
        c = w / _reach(inner, w).clamp(min=shortest)
        c = c / c.sum()
        # How far the median moves is what counts: a small coefficient of a long update is a long way.
        lengths = (norms / typical).clamp(min=1.0)
        for _ in range(_MOST_STEPS):
            products = inner @ c
            distances = (squares - 2 * products + c @ products).clamp(min=0.0).sqrt()
            beta = w / distances.clamp(min=shortest)
            found = beta / beta.sum()
            moved = float(((found - c).abs() * lengths).max())
            c = found
            if moved <= _CONVERGED:
                break
        return tuple(c.tolist())


def _reach(inner: Float64[Tensor, "clients clients"], w: Float64[Tensor, " clients"]) -> Float64[Tensor, " clients"]:
    """How far around each update one has to go to have more than half of the weight."""
    squares = inner.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * inner).clamp(min=0.0).sqrt()
    ordered, order = distances.sort(dim=1)
    within = w[order].cumsum(dim=1)
    first = (within <= 0.5).sum(dim=1).clamp(max=len(w) - 1)
    return ordered.gather(1, first[:, None]).squeeze(1)
