"""The server in the phases of a masked round after the first: it carries messages, and `Gathered` decides.

A client that does not answer in time, fails, or answers something else is out of the round from that phase on. What it
sent before stays: its words are in the sum although it reveals nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from florist.errors import FloristError
from florist.federation.masked_round import MaskedOutcome, MaskedRound
from florist.flower import private_protocol
from florist.flower.client_texts import last_line, one_line
from florist.flower.messages import REVEAL, SHARES, WORDS
from florist.flower.open_round import GRACE, OpenRound
from florist.flower.private_messages import Published
from florist.flower.roster import LOG
from florist.privacy.keys import PublicKeys

Answer = TypeVar("Answer")
"""What a phase reads of a reply."""


@dataclass(frozen=True, slots=True, eq=False)
class PrivatePhases:
    """The phases of one round, from the keys that clients have published to the sum.

    Args:
        grid: carries the messages.
        masked: the settings of the round.
        underway: the round, which is told who is dropped.
        timeout: seconds for the replies of each phase.
        words_follow: is called before words are asked for, after which a round is not begun anew.
    """

    grid: Grid
    masked: MaskedRound
    underway: OpenRound
    timeout: float
    words_follow: Callable[[], None]

    def __call__(self, published: Mapping[str, Published]) -> MaskedOutcome:
        """The sum.

        Args:
            published: by client id.

        Raises:
            BelowThresholdError: in some phase too few clients were left.
            RosterError, BrokenSharesError: as `MaskedRound.gathered` and `Gathered.outcome`.
        """
        gathered = self.masked.gathered(self._unlike(published))
        roster = gathered.roster
        sealed = self._asked(
            SHARES,
            {name: private_protocol.write_roster(roster) for name in sorted(roster.members)},
            lambda _, content: private_protocol.read_sealed(content, roster),
        )
        gathered = gathered.with_shares(sealed)
        self.words_follow()
        words = self._asked(
            WORDS,
            {name: private_protocol.write_received(roster, gathered.sealed_for(name)) for name in sorted(sealed)},
            lambda name, content: private_protocol.read_words(content, roster, name),
        )
        gathered = gathered.with_words(words)
        revealed = self._asked(
            REVEAL,
            {name: private_protocol.write_survivors(roster, words) for name in sorted(words)},
            lambda _, content: private_protocol.read_revealed(
                content, roster, gathered.survivors, gathered.lost_sharers
            ),
        )
        return gathered.outcome(revealed)

    def _unlike(self, published: Mapping[str, Published]) -> Mapping[str, PublicKeys]:
        """The keys without those that another client has as well: a roster that has one twice is good for nobody."""
        found: dict[str, PublicKeys] = {}
        seen: set[bytes] = set()
        for name, each in sorted(published.items()):
            keys = each.keys
            if seen & {keys.sealing, keys.masking}:
                self.underway.drop(name, "expected keys of its own, got those of another client")
                continue
            seen |= {keys.sealing, keys.masking}
            found[name] = keys
        return found

    def _asked(
        self, kind: str, contents: Mapping[str, RecordDict], read: Callable[[str, RecordDict], Answer]
    ) -> Mapping[str, Answer]:
        """What clients answer, by client id; the first reply counts.

        Args:
            kind: the type of the messages.
            contents: what each is sent.
            read: reads the reply of a client.
        """
        nodes, group = self.underway.nodes, str(self.masked.round_number)
        messages = [
            (Message(content, nodes[name], kind, ttl=self.timeout + GRACE, group_id=group), name)
            for name, content in contents.items()
        ]
        sent = [message for message, _ in messages]
        replies = self.grid.send_and_receive(sent, timeout=self.timeout) if sent else []
        by_id = {message.metadata.message_id: name for message, name in messages}
        # Whoever does not reveal is in the sum all the same.
        out = self._noted if kind == REVEAL else self.underway.drop
        found: dict[str, Answer] = {}
        failed: set[str] = set()
        for reply in replies:
            name = by_id.get(reply.metadata.reply_to_message_id)
            if name is None or name in found or name in failed:
                continue
            reason = last_line(reply.error.reason) if reply.has_error() else None
            if reason is None:
                try:
                    found[name] = read(name, reply.content)
                except FloristError as error:
                    reason = str(error)
            if reason is not None:
                failed.add(name)
                out(name, reason)
        for name in sorted(contents.keys() - found.keys() - failed):
            out(name, f"no reply within {self.timeout:g} s to {kind}")
        return found

    def _noted(self, client_id: str, reason: str) -> None:
        LOG.warning("round %d: %s reveals no shares: %s", self.masked.round_number, client_id, one_line(reason))
