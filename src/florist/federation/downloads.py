"""What the server sends to one client: what it lacks, what it trains on from, and how many bytes that is."""

from collections.abc import Collection
from dataclasses import dataclass

from florist.compression.packed import PackedAdapter
from florist.factors import AdapterState
from florist.federation.communication import Communication, saved_parameter_bytes
from florist.federation.local_init import LocalInit
from florist.federation.state import ServerState
from florist.rounds import NO_ADAPTER, NOTHING, Broadcast, ClientWork, SavedParameters, weight_name


@dataclass(frozen=True, slots=True, eq=False)
class Download:
    """What the server sends to one client.

    Attributes:
        adapter: what the client adds to its global adapter: what it missed, or the broadcast of a round. It is empty
            where `packed` has that.
        continued: the first components of the continued adapter, as many as the client's rank, to train on from.
        saved_parameters: the current values of the parameters that travel whole; empty where the client has them.
        directions: the first rows of A to start from, under B = 0, where the client cannot tell them from `adapter`.
        packed: the broadcasts that the client adds one after the other, where a codec packed them.
        packed_continued: `continued` as it is sent, where a codec packed it.
        nbytes: the bytes of all that is sent. A half of `continued` that nobody trains is not, nor are the zeros of
            `directions`.
        replaces: whether `adapter` is the whole global adapter, bit for bit, and takes the place of the client's.
    """

    adapter: AdapterState
    continued: AdapterState
    saved_parameters: SavedParameters
    directions: AdapterState
    nbytes: int
    replaces: bool = False
    packed: tuple[PackedAdapter, ...] = ()
    packed_continued: PackedAdapter | None = None


NOTHING_LACKED = Download(NO_ADAPTER, NO_ADAPTER, NOTHING, NO_ADAPTER, 0)
"""For a client that holds the latest global adapter."""


@dataclass(frozen=True, slots=True)
class Downloads:
    """How downloads are put together.

    Args:
        communication: how broadcasts travel.
        work: what the method asks of clients.
    """

    communication: Communication
    work: ClientWork

    def lacked(
        self, state: ServerState, holds: int | None, rank: int, *, start: LocalInit, adapted: Collection[str]
    ) -> Download:
        """What a client lacks that does not hold the latest global adapter; see `rules.Federation.download`.

        Args:
            state: the state before the round.
            holds: the round whose global adapter the client holds; None for nothing at all.
            rank: the largest rank that it trains.
            start: how its local adapter starts.
            adapted: the modules that may be trained.
        """
        missed = state.broadcasts.missed_since(holds or 0)
        packed = state.broadcasts.packed_since(holds or 0)
        several = (missed is None or len(missed) > 1) and packed is None
        replaces = several and (missed is None or holds is None)
        if packed is not None:
            added = NO_ADAPTER
        else:
            added = state.cumulative if replaces else state.broadcasts.sum_since(holds or 0)
        of_base = () if state.broadcasts else {weight_name(module) for module in adapted}
        whole = {name: tensor for name, tensor in state.saved_parameters.items() if name not in of_base}
        # The sum of several no longer shows the last of them.
        directions = start.directions(state, rank) if several else NO_ADAPTER
        return self._download(state, rank, added, whole, packed=packed or (), directions=directions, replaces=replaces)

    def delivery(self, state: ServerState, broadcast: Broadcast, packed: PackedAdapter | None, rank: int) -> Download:
        """What a client whose update counted is sent after the round: its broadcast.

        Args:
            state: the state after the round.
            broadcast: what was aggregated, as it arrives.
            packed: what travels of its shared adapter; None where that travels as it is.
            rank: the largest rank that the client trains.
        """
        if packed is None:
            return self._download(state, rank, broadcast.shared, broadcast.saved_parameters)
        return self._download(state, rank, NO_ADAPTER, broadcast.saved_parameters, packed=(packed,))

    def _download(
        self,
        state: ServerState,
        rank: int,
        added: AdapterState,
        saved_parameters: SavedParameters,
        *,
        packed: tuple[PackedAdapter, ...] = (),
        directions: AdapterState = NO_ADAPTER,
        replaces: bool = False,
    ) -> Download:
        own = state.continued.map(lambda factor: factor.leading(rank))
        packed_own = state.packed_continued.leading(rank) if state.packed_continued is not None else None
        # Before the first broadcast the parameters are those of the base, which no codec has rounded.
        codec = self.communication.saved_download if state.broadcasts else None
        nbytes = (
            added.nbytes
            + sum(each.nbytes for each in packed)
            + (packed_own.nbytes if packed_own is not None else self.work.continued_bytes(own))
            + saved_parameter_bytes(saved_parameters, codec)
            + sum(factor.A.nbytes for factor in directions.values())
        )
        return Download(added, own, saved_parameters, directions, nbytes, replaces, packed, packed_own)
