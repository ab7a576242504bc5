"""Who may take part in a round and who can be reached: the roster of clients under the rules of the federation."""

import time
from dataclasses import dataclass, field, replace

from flwr.serverapp import Grid

from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.flower.agreement import Agreement
from florist.flower.roster import LOG, PAUSE, Roster


@dataclass(slots=True)
class Membership:
    """The clients of a federation.

    Attributes:
        federation: the rules; the clients in them are put in by `rules`.
        min_clients: how many clients are waited for before the first round.
        wait: seconds to wait for them, and before each round for as many as it needs.
        roster: the clients that have introduced themselves.
        agreement: what they must have in common; set before the first round.
        masked: whether clients are admitted that do not say how many examples they have.
    """

    federation: Federation
    min_clients: int
    wait: float
    roster: Roster = field(default_factory=Roster)
    agreement: Agreement = field(default_factory=lambda: Agreement("", {}))
    masked: bool = False

    @property
    def lasting(self) -> int:
        """How many clients stay members however long they are away: half of `min_clients`, and at least two.

        A site that has left for good must not keep the others waiting, and a network that falls apart must not leave
        one site to go on alone.
        """
        return max(2, -(-self.min_clients // 2))

    @property
    def rules(self) -> Federation:
        """The rules for the clients that are members now."""
        ranks = {client_id: member.rank for client_id, member in self.roster.members.items()}
        return replace(self.federation, client_ranks=ranks, shapes=self.agreement.shapes)

    def admitted(self, grid: Grid, state: ServerState) -> tuple[tuple[str, ...], ServerState]:
        """The clients that can be reached and that train what all train, sorted, and the state with what they hold."""
        self.roster.refresh(grid)
        for introduction in self.roster.newcomers():
            reason = self.agreement.refusal(introduction)
            if introduction.num_examples is None and not self.masked:
                reason = (
                    "expected the number of its training examples, and it takes part in masked rounds alone; set "
                    "privacy.secure_aggregation = true at the server as well"
                )
            if reason is not None:
                self.roster.refuse(introduction.client_id, reason)
                continue
            holds = introduction.holds if 0 <= introduction.holds <= state.latest else None
            state = self.federation.with_holds(state, {introduction.client_id: holds})
        return self.roster.connected(grid), state

    def gather(self, grid: Grid, state: ServerState, deadline: float) -> ServerState:
        """Wait until as many clients are there, and may take part, as are needed to begin.

        Raises:
            TooFewClientsError: by the deadline there were fewer.
        """
        while True:
            connected, state = self.admitted(grid, state)
            if len(connected) >= self.min_clients:
                return state
            self.roster.gather(grid, self.min_clients, max(0.0, deadline - time.monotonic()))

    def for_round(self, grid: Grid, state: ServerState) -> tuple[tuple[str, ...], ServerState]:
        """As `admitted`, once a round could succeed with the clients that can be reached, or the wait is over.

        A network that is away for a minute would otherwise cost the run all the rounds that fit into that minute. A
        client that has been away for several rounds no longer counts; see `Roster.release`.
        """
        deadline = time.monotonic() + self.wait
        connected, state = self.admitted(grid, state)
        self.roster.release(connected, self.lasting)
        if len(connected) < self.rules.required_replies:
            LOG.warning("%d clients can be reached, and a round needs %d", len(connected), self.rules.required_replies)
        while len(connected) < self.rules.required_replies and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(PAUSE, left))
            connected, state = self.admitted(grid, state)
        self.roster.count_round(connected)
        return connected, state
