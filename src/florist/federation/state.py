"""What the server carries from one round to the next."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from florist.aggregation import lossless_sum
from florist.compression.packed import PackedAdapter
from florist.compression.residual import NOTHING_OWED, Residual
from florist.factors import AdapterState
from florist.federation.broadcasts import Broadcasts
from florist.rounds import NO_ADAPTER, NOTHING, SavedParameters


@dataclass(frozen=True, eq=False)  # no slots: the global adapter is computed once and kept
class ServerState:
    """All that the server needs to go on after a round.

    Attributes:
        round_number: how many rounds were closed so far.
        cumulative: the exact sum of all that was ever added, with its components in descending order.
        continued: the adapter of the latest broadcast that clients train on from; empty for methods that only add.
        saved_parameters: the current values of the parameters that travel whole.
        broadcasts: the last broadcast, and those before it that a client may still lack.
        holds: the round whose global adapter a client has, by client id.
        packed_continued: the continued adapter as it is sent, to a client of the largest rank; None where it is sent as
            it is.
        owed: what the server held back of the broadcasts so far.
    """

    round_number: int
    cumulative: AdapterState
    continued: AdapterState
    saved_parameters: SavedParameters
    broadcasts: Broadcasts
    holds: Mapping[str, int]
    packed_continued: PackedAdapter | None = None
    owed: Residual = NOTHING_OWED

    @property
    def latest(self) -> int:
        """The last round that changed the global adapter; 0 before any did."""
        return self.broadcasts.latest

    @cached_property
    def global_adapter(self) -> AdapterState:
        """What the global model adds to the base: everything that was added, and the latest continued adapter.

        Cost: nothing for methods that only add; otherwise one `lossless_sum` at the first access.
        """
        return lossless_sum([self.cumulative, self.continued]) if self.continued else self.cumulative

    @cached_property
    def flushed_adapter(self) -> AdapterState:
        """The global adapter with what the server still holds back.

        Cost: one `lossless_sum` at the first access, where something is held back.
        """
        return lossless_sum([self.global_adapter, self.owed.adapter]) if self.owed.adapter else self.global_adapter

    @classmethod
    def initial(cls, saved_parameters: SavedParameters = NOTHING) -> "ServerState":
        """The state before the first round: the base model as it is."""
        return cls(0, NO_ADAPTER, NO_ADAPTER, saved_parameters, Broadcasts(), {})
