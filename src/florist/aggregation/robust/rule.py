"""What a robust rule is, and what all of them do first: they trust no claimed number of examples too far."""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from florist.errors import ConfigurationError


@runtime_checkable
class RobustRule(Protocol):
    """Chooses the weights of the clients of a round from the inner products of their updates."""

    def __call__(self, inner: Float64[Tensor, "clients clients"], weights: Sequence[float], /) -> tuple[float, ...]:
        """Weights for the sum, none of them negative.

        Args:
            inner: the inner products of what the training of the clients changed.
            weights: the weights that the clients claim, which sum to 1.

        Returns:
            Weights that sum to 1 at most. What is missing to 1 stays with the model as it was before the round.
        """
        ...


def require_fraction(hostile: float) -> None:
    """Check the fraction of hostile clients that a rule is to withstand.

    Raises:
        ConfigurationError: it is no fraction below one half.
    """
    if not 0 <= hostile < 0.5:
        raise ConfigurationError(
            f"expected the fraction of hostile clients in [0, 0.5), got {hostile}; no rule withstands a half of them"
        )


def most_hostile(hostile: float, clients: int) -> int:
    """How many of so many clients may be hostile: the fraction rounded up, and always fewer than half.

    >>> [most_hostile(0.25, clients) for clients in (1, 2, 3, 4, 5, 8, 10)]
    [0, 0, 1, 1, 2, 2, 3]
    """
    return min(math.ceil(round(hostile * clients, 9)), max(0, (clients - 1) // 2))


def bounded_weights(weights: Sequence[float], hostile: int) -> tuple[float, ...]:
    """Weights that no small group of clients can have half of, whatever numbers of examples they claim.

    A weight is a claim. Were it believed, one client that claims a million examples would be a majority. The largest
    weights are therefore cut to one bound, so that any `hostile` clients together have at most the middle between their
    share by number and a half. Weights that fulfil this already stay as they are.

    Args:
        weights: positive, summing to 1.
        hostile: how many clients may be hostile, fewer than half.

    >>> [round(weight, 3) for weight in bounded_weights([0.97, 0.01, 0.01, 0.01], hostile=1)]
    [0.375, 0.208, 0.208, 0.208]
    >>> bounded_weights([0.4, 0.3, 0.3], hostile=1)
    (0.4, 0.3, 0.3)
    """
    if hostile == 0:
        return tuple(weights)
    limit = (hostile / len(weights) + 0.5) / 2
    if _largest_share(weights, hostile) <= limit:
        return tuple(weights)
    # The share of the largest grows with the bound, from their share by number at a bound that cuts all.
    low, high = 0.0, max(weights)
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if _largest_share([min(weight, middle) for weight in weights], hostile) <= limit:
            low = middle
        else:
            high = middle
    cut = [min(weight, low) for weight in weights]
    total = math.fsum(cut)
    return tuple(weight / total for weight in cut)


def norms_of(inner: Float64[Tensor, "clients clients"]) -> Float64[Tensor, " clients"]:
    """The norms of the updates."""
    return inner.diagonal().clamp(min=0.0).sqrt()


def lower_median(values: Float64[Tensor, " clients"]) -> float:
    """The median; of an even number the smaller of both in the middle, which fewer than half cannot raise at will."""
    return float(torch.sort(values).values[(values.numel() - 1) // 2])


def _largest_share(weights: Sequence[float], count: int) -> float:
    total = math.fsum(weights)
    return math.fsum(sorted(weights)[-count:]) / total if total else 0.0
