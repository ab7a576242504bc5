"""How a server begins a run, or goes on with one: what the clients agree on, and the state to play from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flwr.serverapp import Grid

from florist.errors import ConfigurationError
from florist.federation.state import ServerState
from florist.flower.agreement import Agreement, ask_saved_parameters
from florist.flower.journal import Journal
from florist.flower.membership import Membership
from florist.flower.round_book import RoundBook


@dataclass(frozen=True, slots=True, eq=False)
class Beginning:
    """What a server begins with.

    Args:
        members: the clients, whose agreement is set here.
        book: the records, which are taken up here.
        journal: where the run is saved; None for nowhere.
        reference: what clients must agree on; None for what most of the first ones say.
        evaluate: gives metrics of a state's global model at the server; None for none.
        private: how updates are protected, as in `Journal.agree`; None where they are not.
    """

    members: Membership
    book: RoundBook
    journal: Journal | None
    reference: Agreement | None
    evaluate: Callable[[ServerState], Mapping[str, float]] | None
    private: str | None

    def __call__(self, grid: Grid, state: ServerState, timeout: float) -> ServerState:
        """Agree with the clients on what is trained, and take up the state of the run.

        Args:
            grid: carries the messages.
            state: what this process has played so far.
            timeout: seconds for the answer of one client.

        Raises:
            ConfigurationError: the run was begun on another base, with another method, or by other rules.
            DamagedRunError: the journal cannot be resumed from.
        """
        journal, members, book, evaluate = self.journal, self.members, self.book, self.evaluate
        if journal is not None and journal.begun:
            state, book.records = journal.load(state, members.federation, self.private)
        saved = journal.agreed if journal is not None else None
        introductions = members.roster.members.values()
        members.agreement = self.reference or saved or Agreement.of(introductions)
        if saved is not None and saved.base != members.agreement.base:
            raise ConfigurationError(
                f"expected the base {saved.base}, which the run to resume was begun with, got {members.agreement.base}"
            )
        if not book.records:
            agreeing = [member for member in introductions if members.agreement.refusal(member) is None]
            state = ServerState.initial(ask_saved_parameters(grid, members.roster.nodes, agreeing, timeout))
        if journal is not None:
            initial = state
            journal.begin(lambda: evaluate(initial) if evaluate is not None else {})
            journal.agree(members.agreement, members.federation, self.private)
        if evaluate is not None and book.records and not book.records[-1].metrics:
            book.add_metrics(state, evaluate(state))
        return state
