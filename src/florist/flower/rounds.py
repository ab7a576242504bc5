"""The rounds of a run over Flower: opened, closed and written down, in whichever way a `RoundServer` plays them."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from flwr.app import Message
from flwr.serverapp import Grid

from florist.federation.closed_round import ClosedRound
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.flower.exchange import Exchange
from florist.flower.membership import Membership
from florist.flower.open_round import OpenRound
from florist.flower.roster import LOG
from florist.flower.round_book import RoundBook
from florist.flower.round_server import Answers, RoundServer


@dataclass(slots=True, eq=False)
class Rounds:
    """The rounds of a run.

    Attributes:
        members: the clients.
        server: how rounds are played.
        book: the records.
        max_examples: the largest count that a client may claim; None for any.
        timeout: seconds for the replies of a round.
        most: how many rounds the run has at most.
    """

    members: Membership
    server: RoundServer
    book: RoundBook
    max_examples: int | None
    timeout: float = 3600.0
    most: int = 0

    @property
    def rules(self) -> Federation:
        """The rules for the clients that are members now."""
        return self.server.rules(self.members.rules)

    def left(self, state: ServerState) -> int:
        """How many rounds are to be played after a state."""
        return max(0, self.server.rounds_within(self.most, self.book.records) - state.round_number)

    def opened(self, state: ServerState, connected: Collection[str]) -> tuple[OpenRound, list[Message]]:
        """The round after a state, and its instructions to the clients that are drawn.

        Args:
            state: the state before it.
            connected: the clients that can be reached.
        """
        underway, rules = self._begun(state), self.rules
        drawn = self.server.participants(rules, underway.number, connected)
        away = rules.client_ranks.keys() if len(connected) < rules.clients_per_round else drawn
        for client_id in sorted(set(away) - set(connected)):
            underway.drop(client_id, "not connected when the round began")
        asked = [client_id for client_id in drawn if client_id in connected]
        underway.exchange = self.server.exchange(underway.exchange, asked, self.book.records)
        LOG.info("round %d: asked to train: %s", underway.number, ", ".join(asked) or "nobody")
        return underway, underway.messages(asked, self.server.kind)

    def closed(self, grid: Grid, underway: OpenRound, state: ServerState, answers: Answers) -> ClosedRound:
        """Close a round, and make it permanent.

        Args:
            grid: carries the messages of further phases.
            underway: the round.
            state: the state before it.
            answers: what the clients answered.
        """
        closed = self.server.closed(grid, underway, underway.as_told(state), answers, self.book.records)
        for drop in closed.dropped:
            underway.drop(drop.client_id, drop.reason)
        return self._written(underway, closed)

    def left_unfinished(self, state: ServerState) -> Iterator[ClosedRound]:
        """Rounds that an earlier process left in a way that they must not be played again, as they are closed."""
        while (closed := self.server.unfinished(self.rules, state, self.book.records)) is not None:
            self.book.round_begins()
            self.book.training_ends()
            closed = self._written(self._begun(state), closed)
            state = closed.state
            yield closed

    def _begun(self, state: ServerState) -> OpenRound:
        roster = self.members.roster
        return OpenRound(
            Exchange(self.rules, state, dict(roster.members), self.max_examples, self.book.last_counted()),
            state.round_number + 1,
            dict(roster.nodes),
            self.timeout,
        )

    def _written(self, underway: OpenRound, closed: ClosedRound) -> ClosedRound:
        if closed.broadcast is None:
            needed = underway.exchange.federation.required_replies
            LOG.warning(
                "round %d: the global adapter stays as it was: %s",
                underway.number,
                closed.failed or f"{len(closed.counted)} usable updates, and {needed} are needed",
            )
        # What the in-process engine delivers at once is sent with the next message here.
        closed = replace(closed, state=underway.as_told(closed.state), deliveries={})
        closed = self.server.marked(closed, self.most)
        self.book.write(closed, underway)
        return closed
