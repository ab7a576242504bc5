"""What a client has of the global model between rounds, and how a download moves it on.

The state lives in Flower's ``Context.state``, which outlives the process that trains, but neither the SuperNode nor
the run. A client that has lost it says so, and is sent the global adapter itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from florist.aggregation import lossless_sum
from florist.factors import AdapterState
from florist.federation.broadcasts import Broadcasts
from florist.federation.local_init import Continued, LocalInit, LocalStart
from florist.federation.state import ServerState
from florist.flower.arrays import (
    adapter_to_arrays,
    arrays_to_adapter,
    arrays_to_tensors,
    tensors_to_arrays,
    unpacked,
)
from florist.flower.messages import Instruction, adapter_along
from florist.rounds import NO_ADAPTER, NOTHING, SavedParameters

_HOLDS, _SAVED = "florist.holds", "florist.saved_parameters"
_ADAPTERS = ("cumulative", "continued", "last", "directions")


@dataclass(frozen=True, slots=True, eq=False)
class ClientState:
    """What a client has downloaded so far.

    Attributes:
        round_number: the round that the client holds; -1 before the first download.
        cumulative: the sum of all that was ever added.
        continued: the client's cut of the adapter that everybody trains on from.
        last: the last broadcast, where it came by itself; a start may depend on it.
        directions: the start that was sent in the place of that broadcast.
        saved_parameters: the current values of the saved parameters, where any were sent.
    """

    round_number: int = -1
    cumulative: AdapterState = field(default_factory=lambda: NO_ADAPTER)
    continued: AdapterState = field(default_factory=lambda: NO_ADAPTER)
    last: AdapterState = field(default_factory=lambda: NO_ADAPTER)
    directions: AdapterState = field(default_factory=lambda: NO_ADAPTER)
    saved_parameters: SavedParameters = field(default_factory=lambda: NOTHING)

    def after(self, instruction: Instruction, shapes: Mapping[str, tuple[int, int]]) -> "ClientState | None":
        """The state with the download; None where the download does not fit it.

        Args:
            instruction: brings the download.
            shapes: (out_features, in_features) of the modules.

        Raises:
            InvalidUpdateError: directions do not fit the modules, or what was packed cannot be decoded.

        Cost: one lossless sum of the client's global adapter and each added one.
        """
        assignment = instruction.assignment
        if assignment.since != -1 and self.round_number == assignment.until:
            return self  # the reply to an earlier message of the same download was lost
        if assignment.since not in {-1, self.round_number}:
            return None
        if assignment.since == assignment.until:
            return self
        before = self if assignment.since != -1 else ClientState()
        # The sum is bit for bit what the server has, as long as a client misses no round or is sent what was packed.
        cumulative, last = before.cumulative, instruction.added
        if assignment.replaces:
            cumulative = last
        elif not instruction.packed:
            cumulative = lossless_sum([cumulative, last])
        for packed in instruction.packed:  # decoded one at a time, so that no more than one is held beside the sum
            last = unpacked(packed)
            cumulative = lossless_sum([cumulative, last])
        return ClientState(
            round_number=assignment.until,
            cumulative=cumulative,
            continued=instruction.continued,
            last=last,
            directions=adapter_along(instruction.directions, shapes),
            saved_parameters={**before.saved_parameters, **instruction.saved_parameters},
        )

    def start(self, instruction: Instruction, rank: int, shapes: Mapping[str, tuple[int, int]]) -> LocalStart:
        """What the client begins to train with: the same as the server's `Federation.start`, from this state."""
        if self.directions and not instruction.assignment.agreed_rows:
            return LocalStart(self.cumulative, self.directions)
        return self._begin(instruction, shapes)(self._as_at_the_server, rank)

    def given(self, instruction: Instruction, rank: int, shapes: Mapping[str, tuple[int, int]]) -> AdapterState:
        """The part of the global adapter that the client trains on from, which is not its own change."""
        return self._begin(instruction, shapes).given(self._as_at_the_server, rank)

    @property
    def global_adapter(self) -> AdapterState:
        """What the global model adds to the base, with the client's own cut of a continued adapter."""
        return lossless_sum([self.cumulative, self.continued]) if self.continued else self.cumulative

    def _begin(self, instruction: Instruction, shapes: Mapping[str, tuple[int, int]]) -> LocalInit:
        return Continued() if self.continued else instruction.assignment.start(shapes)

    @property
    def _as_at_the_server(self) -> ServerState:
        # Where directions were sent, they stand for the last broadcast: a start reads no more of it than its rows.
        last = Broadcasts({self.round_number: self.directions or self.last} if self.round_number > 0 else {})
        return ServerState(self.round_number, self.cumulative, self.continued, NOTHING, last, {})

    def save(self, memory: RecordDict) -> None:
        """Put the state into the memory that the SuperNode keeps."""
        memory[_HOLDS] = ConfigRecord({"round": self.round_number})
        for name in _ADAPTERS:
            memory[f"florist.{name}"] = adapter_to_arrays(getattr(self, name))
        memory[_SAVED] = tensors_to_arrays(self.saved_parameters)

    @classmethod
    def load(cls, memory: RecordDict) -> "ClientState":
        """Take the state from that memory; a memory without one gives the state before the first download."""
        if _HOLDS not in memory:
            return cls()
        round_number = memory.config_records[_HOLDS]["round"]
        arrays: Mapping[str, ArrayRecord] = memory.array_records
        adapters = {name: arrays_to_adapter(arrays[f"florist.{name}"]) for name in _ADAPTERS}
        return cls(int(str(round_number)), **adapters, saved_parameters=arrays_to_tensors(arrays[_SAVED]))
