"""How the state moves on, once what a round adds to the model is known."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from florist.aggregation import lossless_sum
from florist.federation.communication import Communication
from florist.federation.downloads import Download, Downloads
from florist.federation.state import ServerState
from florist.rounds import Broadcast, ClientWork


@dataclass(frozen=True, slots=True, eq=False)
class MovedOn:
    """What a round that changed the model leaves.

    Attributes:
        state: the state to start the next round from.
        broadcast: what was sent, decoded.
        deliveries: what each client that took part is sent now, by client id.
    """

    state: ServerState
    broadcast: Broadcast
    deliveries: Mapping[str, Download]


@dataclass(frozen=True, slots=True)
class MovingOn:
    """The rules by which it does.

    Args:
        client_ranks: every client that may be asked, and the largest rank that it trains.
        communication: how broadcasts travel.
        work: what the method asks of its clients.
        catch_up_rounds: for how many rounds broadcasts are kept.
    """

    client_ranks: Mapping[str, int]
    communication: Communication
    work: ClientWork
    catch_up_rounds: int

    def __call__(
        self, state: ServerState, aggregated: Broadcast, took_part: Collection[str], upload_bytes: int
    ) -> MovedOn:
        """Send what was aggregated, and add it to the global adapter.

        Args:
            state: the state before the round.
            aggregated: what the method made of the round.
            took_part: the clients that are sent the broadcast, and hold the new global adapter afterwards.
            upload_bytes: what they sent.
        """
        round_number = state.round_number + 1
        sent = self.communication.sent_broadcast(aggregated, state.owed, self.work)
        certificate = replace(sent.broadcast.certificate, bytes_in=upload_bytes)
        broadcast = replace(sent.broadcast, certificate=certificate)
        holds = {**state.holds, **dict.fromkeys(took_part, round_number)}
        # Whoever holds nothing yet is caught up from the first broadcast where that is cheap, which packed ones are.
        held = holds.values() if sent.shared is None else [holds.get(client_id, 0) for client_id in self.client_ranks]
        lacked_since = max(min(held, default=round_number), round_number - self.catch_up_rounds)
        after = ServerState(
            round_number=round_number,
            cumulative=lossless_sum([state.cumulative, broadcast.shared]),
            continued=broadcast.continued,
            saved_parameters=broadcast.saved_parameters,
            broadcasts=state.broadcasts.followed_by(round_number, broadcast.shared, lacked_since, sent.shared),
            holds=holds,
            packed_continued=sent.continued,
            owed=sent.owed,
        )
        downloads = Downloads(self.communication, self.work)
        deliveries = {
            client_id: downloads.delivery(after, broadcast, sent.shared, self.client_ranks[client_id])
            for client_id in took_part
        }
        return MovedOn(after, broadcast, deliveries)
