"""The end of a round in one process: what clients send of what they trained, and what comes of it."""

from collections.abc import Mapping, Sequence

from florist.errors import NonFiniteUpdateError
from florist.federation.client_residuals import ClientResiduals
from florist.federation.closed_round import ClosedRound
from florist.federation.communication import SentUpdate
from florist.federation.records import Drop
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.rounds import ClientUpdate


def closed_in_process(
    federation: Federation,
    state: ServerState,
    owed: ClientResiduals,
    updates: Sequence[ClientUpdate],
    claimed: Mapping[str, int],
) -> tuple[ClosedRound, ClientResiduals]:
    """Send the updates of a round and close it.

    Args:
        federation: the rules.
        state: the state before the round.
        owed: what clients held back before.
        updates: what each client trained.
        claimed: how many examples each client claimed when it first counted.

    Returns:
        The outcome, and what clients hold back now.
    """
    sent: dict[str, SentUpdate] = {}
    unsent: list[Drop] = []
    for update in updates:
        try:
            sent[update.client_id] = federation.sent_update(state, update, owed.of(update.client_id))
        except NonFiniteUpdateError as error:
            unsent.append(Drop(update.client_id, f"its update cannot be sent: {error}"))
    closed = federation.close_round(state, [each.update for each in sent.values()], unsent, claimed)
    if closed.broadcast is not None:
        # An update that does not count was not sent, as far as the sums go: its client owes what it owed before.
        counted = {update.client_id: sent[update.client_id].owed for update in closed.counted}
        owed = owed.followed_by(state.round_number + 1, counted)
    return closed, owed
