"""How large the updates of a round are, and how far they point the same way, from their factors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from florist.aggregation.products import product_gram
from florist.rounds import ClientUpdate

MOST_CLIENTS = 32
"""Cosines are computed between so many clients of a round: their number grows with the square of it."""


@dataclass(frozen=True, slots=True)
class UpdateGeometry:
    """The norms of a round's updates and the angles between them, over all modules together.

    Attributes:
        norms: ``||dW||_F`` of each update, in the order of the updates; None for an update without factors.
        cosines: the lower triangle without its diagonal, a row for each of the first `MOST_CLIENTS` updates: row i has
            the cosines between update i and the updates 0 to i - 1, rounded to four digits; None beside a zero update.
    """

    norms: tuple[float | None, ...] = ()
    cosines: tuple[tuple[float | None, ...], ...] = ()


# No slots: the geometry is computed once, and only where somebody asks for it.
@dataclass(frozen=True, eq=False)
class Changes:
    """What the training of each client changed in a round, as it went into the sum.

    Attributes:
        updates: the changes, in the order of the clients that count.
    """

    updates: tuple[ClientUpdate, ...] = ()

    @cached_property
    def geometry(self) -> UpdateGeometry:
        """The norms and the cosines.

        Cost: as `update_geometry`, at the first access.
        """
        return update_geometry(self.updates)


def update_geometry(updates: Sequence[ClientUpdate]) -> UpdateGeometry:
    """Compute the norms of updates and the cosines between them, without any dense update.

    Args:
        updates: the updates of one round. A module that an update lacks counts as zero.

    Returns:
        Norms of all updates, and cosines between the first `MOST_CLIENTS`.

    Cost: O((m + n) R^2) a module for the first `MOST_CLIENTS`, and O((m + n) r^2) for each client beyond them; one
    module of theirs is in memory at a time. The sums are in float64, the Gram matrices in the precision of the factors.
    """
    count = min(len(updates), MOST_CLIENTS)
    inner = product_gram([update.adapter for update in updates[:count]], precision=None)
    squares = [*inner.diagonal().tolist(), *(_energy(update) for update in updates[count:])]
    norms = [max(square, 0.0) ** 0.5 for square in squares]
    return UpdateGeometry(
        norms=tuple(
            norm if update.adapter and math.isfinite(norm) else None
            for update, norm in zip(updates, norms, strict=True)
        ),
        cosines=tuple(tuple(_cosine(float(inner[i, j]), norms[i] * norms[j]) for j in range(i)) for i in range(count))
        if count > 1 and any(norms[:count])
        else (),
    )


def _energy(update: ClientUpdate) -> float:
    return sum(factor.energy() for factor in update.adapter.values())


def _cosine(inner: float, norms: float) -> float | None:
    # Rounding may take the cosine of two equal updates a little above 1.
    return round(min(1.0, max(-1.0, inner / norms)), 4) if norms and math.isfinite(norms) else None
