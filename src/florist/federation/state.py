"""What the server carries from one round to the next."""

from collections.abc import Mapping
from dataclasses import dataclass

from florist.factors import AdapterState
from florist.rounds import NO_ADAPTER, NOTHING, SavedParameters


@dataclass(frozen=True, slots=True, eq=False)
class ServerState:
    """All that the server needs to go on after a round.

    Attributes:
        round_number: rounds closed so far.
        cumulative: the exact sum of all that was ever added, components in descending order.
        continued: the adapter of the latest broadcast that everybody trains on from; empty for methods that only add.
        saved_parameters: current values of the parameters that travel whole.
        broadcasts: what was added, by round; a client that missed some gets their sum.
        holds: by client id, the round up to which it holds the global adapter.
    """

    round_number: int
    cumulative: AdapterState
    continued: AdapterState
    saved_parameters: SavedParameters
    broadcasts: Mapping[int, AdapterState]
    holds: Mapping[str, int]

    @property
    def latest(self) -> int:
        """The last round that changed the global adapter; 0 before any did."""
        return max(self.broadcasts, default=0)

    @classmethod
    def initial(cls, saved_parameters: SavedParameters = NOTHING) -> "ServerState":
        """Before the first round: the base model as it is."""
        return cls(0, NO_ADAPTER, NO_ADAPTER, saved_parameters, {}, {})
