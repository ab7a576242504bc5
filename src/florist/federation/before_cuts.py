"""What the clients of a round trained, before any cut: an upload that was cut does not show it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from florist.rounds import ClientUpdate, saved_bytes


@dataclass(frozen=True, slots=True)
class BeforeCuts:
    """The ranks and the bytes of what was trained, from the updates as they arrive.

    Args:
        client_ranks: the largest rank that each client trains.
        shapes: (out_features, in_features) of every module that may be trained.
        may_be_cut: whether clients upload what training changed, cut perhaps, in the place of what they trained.
    """

    client_ranks: Mapping[str, int]
    shapes: Mapping[str, tuple[int, int]]
    may_be_cut: bool

    def ranks(self, updates: Sequence[ClientUpdate]) -> Mapping[str, int]:
        """The rank of each client's local adapter, the largest over its modules, by client id."""
        if self.may_be_cut:
            return {update.client_id: self.client_ranks[update.client_id] for update in updates}
        return {
            update.client_id: max((spec.rank for spec in update.adapter.specs.values()), default=0)
            for update in updates
        }

    def stack(self, updates: Sequence[ClientUpdate]) -> tuple[int, int]:
        """The total rank of all local adapters stacked, and the bytes of both halves and of what travels whole."""
        if not self.may_be_cut:
            return sum(update.adapter.total_rank for update in updates), sum(update.nbytes for update in updates)
        ranks = sum(self.client_ranks[update.client_id] for update in updates)
        numbers = ranks * sum(sum(shape) for shape in self.shapes.values())
        saved = sum(saved_bytes(update.saved_parameters) for update in updates)
        return ranks * len(self.shapes), numbers * torch.float32.itemsize + saved
