"""Weights of a robust rule, as updates that any aggregation method takes."""

import math
from collections.abc import Sequence
from dataclasses import replace

from florist.aggregation.updates import client_weights
from florist.rounds import ClientUpdate

# The weights of a method are shares of whole numbers: these have all the digits of a float64.
_EXAMPLES = 1 << 53


def reweighted(
    updates: Sequence[ClientUpdate], coefficients: Sequence[float], standing: ClientUpdate
) -> tuple[ClientUpdate, ...]:
    """The updates of which a method makes ``sum_k c_k x_k + (1 - sum_k c_k) x_0``.

    The only weight that every method knows is the number of examples, which is therefore replaced. What the
    coefficients lack of 1 is given to an update of the server's own, which holds the model as it was before the round:
    to count a client's change by a half is to average it with no change.

    Args:
        updates: of one round, in the order of their client ids.
        coefficients: one each, none negative, summing to 1 at most.
        standing: the model before the round, as an update; its name and number of examples do not matter.

    Returns:
        The updates themselves where the coefficients are their weights. A client of weight 0 is left out.
    """
    if all(math.isclose(c, w, rel_tol=1e-12) for c, w in zip(coefficients, client_weights(updates), strict=True)):
        return tuple(updates)
    name = standing.client_id
    while any(update.client_id == name for update in updates):
        name += "'"
    rest = max(0.0, 1.0 - math.fsum(coefficients))
    if rest <= 1e-12:
        rest = 0.0  # rounding, for which no module needs another part
    weighed = [*zip(updates, coefficients, strict=True), (replace(standing, client_id=name), rest)]
    return tuple(
        replace(update, num_examples=examples) for update, c in weighed if (examples := round(c * _EXAMPLES)) > 0
    )
