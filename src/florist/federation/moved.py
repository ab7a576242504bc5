"""How far the training of a client moved the model: what the guard and robust rules judge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

from florist.aggregation.products import parameter_gram, product_gram
from florist.factors import AdapterState
from florist.federation.local_init import change
from florist.federation.state import ServerState
from florist.rounds import NOTHING, ClientUpdate, SavedParameters

PRODUCT, HALVES, PARAMETERS = "product", "halves", "parameters that travel whole"
"""The parts of an update, whose norms are judged apart."""


@dataclass(frozen=True, eq=False)  # no slots: the norms are computed once and kept
class Moved:
    """What the training of one client changed, from where it began.

    Attributes:
        client_id: the client.
        num_examples: how many examples it claims.
        change: the change of the adapter's products.
        parameters: the values of the parameters that travel whole.
        before: their values before the round.
        halves: the change of B and of A, where a method averages them apart.
    """

    client_id: str
    num_examples: int
    change: AdapterState
    parameters: SavedParameters = field(default_factory=lambda: NOTHING)
    before: SavedParameters = field(default_factory=lambda: NOTHING)
    halves: SavedParameters = field(default_factory=lambda: NOTHING)

    @classmethod
    def of(cls, update: ClientUpdate, start: AdapterState, before: SavedParameters, halves: int) -> "Moved":
        """What an update changed.

        Args:
            update: with finite factors, whose adapter is measured from `start`.
            start: the adapter that the client trained on from, with the rows of A that it drew; modules that it lacks,
                and all modules where it is empty, started from nothing.
            before: the parameters that travel whole, before the round.
            halves: the largest rank of any client, where the halves count apart as well; 0 where they do not.
        """
        moved = change(update.adapter, start)
        own = _halves(update.adapter, start, halves) if halves else NOTHING
        return cls(update.client_id, update.num_examples, moved, update.saved_parameters, before, own)

    @cached_property
    def norms(self) -> Mapping[str, float]:
        """The norm of each part that there is.

        Cost: O((m + n) r^2) a module, in float64, at the first access.
        """
        found: dict[str, float] = {}
        if self.change:
            found[PRODUCT] = max(0.0, sum(factor.energy() for factor in self.change.values())) ** 0.5
        if self.halves:
            found[HALVES] = float(parameter_gram([self.halves])) ** 0.5
        if self.parameters:
            found[PARAMETERS] = float(parameter_gram([self.parameters], self.before)) ** 0.5
        return found

    @cached_property
    def component_norm(self) -> float:
        """The root mean square, over all components of all modules, of what each adds to the norm of the product.

        With one ratio of alpha to r at all clients, the norm of a client's product grows with the root of its rank;
        this does not. It is 0 where there are no factors. Where clients were given a start,
        `change` has the sum of both ranks, and that sum is what counts, for all clients of a method alike.
        """
        rank = sum(spec.rank for spec in self.change.specs.values())
        return self.norms.get(PRODUCT, 0.0) / rank**0.5 if rank else 0.0


def model_as_update(state: ServerState, adapter: AdapterState) -> ClientUpdate:
    """The model before a round, as the update of a client that changed nothing.

    Args:
        state: the state before the round.
        adapter: the adapter that clients train on from; empty for methods that only add.
    """
    return ClientUpdate("the server", adapter, 1, state.round_number + 1, state.saved_parameters)


def inner_products_of(moved: Sequence[Moved]) -> Float64[Tensor, "clients clients"]:
    """The inner products of what clients changed, over all of its parts.

    Cost: as `product_gram` and `parameter_gram`.
    """
    before = moved[0].before if moved else NOTHING
    return (
        product_gram([one.change for one in moved])
        + parameter_gram([one.halves for one in moved])
        + parameter_gram([one.parameters for one in moved], before)
    )


def _halves(adapter: AdapterState, start: AdapterState, rank: int) -> SavedParameters:
    """The change of each half at one rank, so that those of all clients have one shape."""
    found: dict[str, Tensor] = {}
    for name, factor in adapter.items():
        now = factor.to(dtype=torch.float64).padded(rank)
        found[f"{name}.B"], found[f"{name}.A"] = now.B, now.A
        if name in start.specs:
            was = start[name].to(dtype=torch.float64, device=now.B.device).padded(rank)
            found[f"{name}.B"], found[f"{name}.A"] = now.B - was.B, now.A - was.A
    return found
