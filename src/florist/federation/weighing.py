"""What weights the updates of a round get, from the guard's clips and a robust rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from florist.aggregation.robust import RobustRule, reweighted
from florist.aggregation.updates import client_weights
from florist.federation.moved import Moved, inner_products_of
from florist.federation.records import Clip
from florist.rounds import ClientUpdate


@dataclass(frozen=True, slots=True, eq=False)
class Weighed:
    """The updates of a round as a method is to combine them.

    Attributes:
        updates: with numbers of examples that stand for the weights.
        weights: the weights by client id; empty where they are the shares of the examples.
    """

    updates: tuple[ClientUpdate, ...]
    weights: Mapping[str, float] = field(default_factory=dict[str, float])


def weigh(
    updates: Sequence[ClientUpdate],
    moved: Sequence[Moved],
    clipped: Sequence[Clip],
    robust: RobustRule | None,
    standing: ClientUpdate,
) -> Weighed:
    """Weigh the updates of a round.

    Args:
        updates: in the order of their client ids.
        moved: what each of them changed.
        clipped: which of them count less than their share.
        robust: the rule; None for the shares of the examples.
        standing: the model before the round, as an update.

    Cost: as `inner_products_of` where there is a rule.
    """
    if not updates or (robust is None and not clipped):
        return Weighed(tuple(updates))
    by_client = {clip.client_id: clip.factor for clip in clipped}
    factors = [by_client.get(update.client_id, 1.0) for update in updates]
    weights = client_weights(updates)
    if robust is not None:
        scale = torch.tensor(factors, dtype=torch.float64)
        weights = robust(inner_products_of(moved) * scale[:, None] * scale, weights)
    weights = tuple(weight * factor for weight, factor in zip(weights, factors, strict=True))
    by_id = {update.client_id: weight for update, weight in zip(updates, weights, strict=True)}
    return Weighed(reweighted(updates, weights, standing), by_id)
