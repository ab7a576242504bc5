"""How a server plays the rounds of a federation: what it asks of clients, and what becomes of their answers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from flwr.serverapp import Grid

from florist.federation.closed_round import ClosedRound
from florist.federation.recording import first_claims
from florist.federation.records import RoundRecord
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.flower.exchange import Exchange
from florist.flower.messages import TRAIN, Upload
from florist.flower.open_round import Answer, OpenRound
from florist.rounds import ClientUpdate

Answers = Mapping[str, Sequence[Answer]]
"""What clients answered the instruction of a round, by client id."""


@runtime_checkable
class RoundServer(Protocol):
    """What differs between rounds in the clear and private ones."""

    @property
    def kind(self) -> str:
        """The type of the message that asks a client to train."""
        ...

    @property
    def masked(self) -> bool:
        """Whether clients need not say how many examples they have."""
        ...

    @property
    def settings(self) -> str | None:
        """What a run that is resumed has to have as before; None for nothing beside the rules."""
        ...

    def require_possible(self, rules: Federation, state: ServerState) -> None:
        """Check that a round can be played.

        Raises:
            ConfigurationError: it cannot.
        """
        ...

    def rules(self, federation: Federation) -> Federation:
        """The rules of a round, from those of the federation and its present clients."""
        ...

    def rounds_within(self, most: int, records: Sequence[RoundRecord]) -> int:
        """How many rounds, at most `most`, may be played."""
        ...

    def participants(self, rules: Federation, number: int, connected: Collection[str]) -> tuple[str, ...]:
        """The clients that a round draws, sorted; some of them may be away."""
        ...

    def exchange(self, exchange: Exchange, asked: Collection[str], records: Sequence[RoundRecord]) -> Exchange:
        """The conversation of a round.

        Args:
            exchange: that of a round in the clear.
            asked: the clients that are asked.
            records: of the rounds before.
        """
        ...

    def closed(
        self, grid: Grid, underway: OpenRound, state: ServerState, answers: Answers, records: Sequence[RoundRecord]
    ) -> ClosedRound:
        """Close a round.

        Args:
            grid: carries the messages of further phases.
            underway: the round.
            state: the state before it.
            answers: what the clients answered that were asked to train.
            records: of the rounds before.
        """
        ...

    def marked(self, closed: ClosedRound, rounds: int) -> ClosedRound:
        """A closed round that says whether it is the last that may be played of so many."""
        ...

    def unfinished(self, rules: Federation, state: ServerState, records: Sequence[RoundRecord]) -> ClosedRound | None:
        """The round in which an earlier process of the server stopped, where it must not be played again."""
        ...


@dataclass(frozen=True, slots=True)
class PlainServer:
    """Rounds of which the server has the update of each client."""

    kind: str = TRAIN
    masked: bool = False
    settings: None = None

    def require_possible(self, rules: Federation, state: ServerState) -> None:  # noqa: ARG002  # of the protocol
        """As `RoundServer.require_possible`."""
        rules.require_possible()

    def rules(self, federation: Federation) -> Federation:
        """As they are."""
        return federation

    def rounds_within(self, most: int, records: Sequence[RoundRecord]) -> int:  # noqa: ARG002  # of the protocol
        """All of them."""
        return most

    def participants(self, rules: Federation, number: int, connected: Collection[str]) -> tuple[str, ...]:
        """Drawn among those that can be reached."""
        return rules.participants(number, connected)

    def exchange(self, exchange: Exchange, asked: Collection[str], records: Sequence[RoundRecord]) -> Exchange:  # noqa: ARG002  # of the protocol
        """As it is."""
        return exchange

    def closed(
        self,
        grid: Grid,  # noqa: ARG002  # of the protocol
        underway: OpenRound,
        state: ServerState,
        answers: Answers,
        records: Sequence[RoundRecord],
    ) -> ClosedRound:
        """Check the updates, and aggregate those that can be used."""
        return underway.exchange.federation.close_round(state, updates_in(answers), claimed=first_claims(records))

    def marked(self, closed: ClosedRound, rounds: int) -> ClosedRound:  # noqa: ARG002  # of the protocol
        """As it is."""
        return closed

    def unfinished(self, rules: Federation, state: ServerState, records: Sequence[RoundRecord]) -> None:
        """None: a round that was not closed is played again."""


def updates_in(answers: Answers) -> list[ClientUpdate]:
    """The updates among the answers."""
    return [Exchange.update(each) for some in answers.values() for each in some if isinstance(each, Upload)]
