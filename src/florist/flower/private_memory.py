"""What a client keeps between the phases of a masked round, in Flower's ``Context.state``.

A SuperNode starts a process for each message, so that nothing else outlives a phase. The words that a client is going
to send are kept, too: deriving them again would mean to train again. They take as many bytes as what is sent, and are
gone once it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from jaxtyping import UInt64

from florist.errors import RosterError
from florist.flower.arrays import arrays_to_tensors, tensors_to_arrays
from florist.flower.private_protocol import words_as_tensor, words_of_tensor
from florist.privacy.keys import KEY_BYTES, PublicKeys, Secrets
from florist.privacy.masking import SEALED_BYTES
from florist.privacy.roster import Member, Roster
from florist.privacy.turn import Turn

_TURN, _WORDS, _SENT = "florist.private_turn", "florist.private_words", "florist.private_sent"


@dataclass(frozen=True, slots=True, eq=False)
class PrivateMemory:
    """A client's memory of masked rounds.

    Attributes:
        sent_in: the last round in which it sent words; 0 for none. In that round and those before it sends no more:
            training is the same again, and two sums over unlike clients would show the update of those in between.
        turn: its part in the round under way; None where there is none.
        words: what it is going to send in it, before it is masked; None once it was sent.
    """

    sent_in: int = 0
    turn: Turn | None = None
    words: UInt64[np.ndarray, " words"] | None = None

    def require_unsent(self, client_id: str, round_number: int) -> None:
        """Check that a round may begin, or begin anew with new secrets.

        Raises:
            RosterError: the client has sent words in it, or in a later one.
        """
        if round_number <= self.sent_in:
            raise RosterError(
                f"{client_id}: expected a masked round after round {self.sent_in}, in which it has sent its words, got "
                f"round {round_number}; it sends them once, and takes part in the next round"
            )

    def begun(self, turn: Turn, words: UInt64[np.ndarray, " words"]) -> "PrivateMemory":
        """The memory as a round begins; secrets of an earlier one are gone."""
        return PrivateMemory(self.sent_in, turn, words)

    def in_turn(self) -> Turn:
        """The part in the round under way.

        Raises:
            RosterError: there is none; the client was started anew, for instance.
        """
        if self.turn is None:
            raise RosterError(
                "expected to have published keys in this round, and this client has kept none: it was started anew, or "
                "has taken no part; it takes part in the next round"
            )
        return self.turn

    def after(self, turn: Turn) -> "PrivateMemory":
        """The memory after a phase; the words are gone once they were sent."""
        if turn.has_masked:
            return PrivateMemory(max(self.sent_in, turn.round_number), turn, None)
        return replace(self, turn=turn)

    def save(self, memory: RecordDict) -> None:
        """Put it into the memory that the SuperNode keeps, in the place of what was there."""
        memory[_SENT] = ConfigRecord({"round": self.sent_in})
        memory[_TURN] = ConfigRecord(_written(self.turn) if self.turn is not None else {})
        memory[_WORDS] = (
            tensors_to_arrays({"words": words_as_tensor(self.words)}) if self.words is not None else ArrayRecord()
        )

    @classmethod
    def load(cls, memory: RecordDict) -> "PrivateMemory":
        """Take it from that memory; a memory without one gives that of a client that has taken no part yet."""
        if _SENT not in memory:
            return cls()
        turn = dict(memory.config_records[_TURN])
        words = arrays_to_tensors(memory.array_records[_WORDS]).get("words")
        return cls(
            int(str(memory.config_records[_SENT]["round"])),
            _read(turn) if turn else None,
            words_of_tensor(words) if words is not None else None,
        )


def _written(turn: Turn) -> dict[str, Any]:
    secrets, roster, received = turn.secrets, turn.roster, turn.received
    fields: dict[str, Any] = {
        "client_id": turn.client_id,
        "round": turn.round_number,
        "words": turn.words,
        "smallest_threshold": turn.smallest_threshold,
        "smallest_group": turn.smallest_group,
        "has_masked": turn.has_masked,
        "secrets": secrets.sealing + secrets.masking + secrets.seed if secrets is not None else b"",
    }
    if roster is not None:
        names = sorted(roster.members)
        members = [roster.members[name] for name in names]
        fields |= {
            "roster.run": roster.run,
            "roster.threshold": roster.threshold,
            "roster.smallest_group": roster.smallest_group,
            "roster.names": names,
            "roster.words": [member.words for member in members],
            "roster.keys": b"".join(each.keys.sealing + each.keys.masking + each.keys.commitment for each in members),
        }
    if received is not None:
        fields |= {"senders": sorted(received), "received": b"".join(received[name] for name in sorted(received))}
    return fields


def _read(fields: Mapping[str, Any]) -> Turn:
    secrets, received = _pieces(fields["secrets"], KEY_BYTES), None
    if "senders" in fields:
        received = dict(zip(fields["senders"], _pieces(fields["received"], SEALED_BYTES), strict=True))
    return Turn(
        fields["client_id"],
        fields["round"],
        fields["words"],
        fields["smallest_threshold"],
        fields["smallest_group"],
        Secrets(*secrets) if secrets else None,
        _roster(fields) if "roster.run" in fields else None,
        received,
        fields["has_masked"],
    )


def _roster(fields: Mapping[str, Any]) -> Roster:
    keys = _pieces(fields["roster.keys"], KEY_BYTES)
    members = {
        name: Member(PublicKeys(*keys[3 * place : 3 * place + 3]), words)
        for place, (name, words) in enumerate(zip(fields["roster.names"], fields["roster.words"], strict=True))
    }
    return Roster(
        fields["roster.run"], fields["round"], fields["roster.threshold"], members, fields["roster.smallest_group"]
    )


def _pieces(whole: bytes, size: int) -> Sequence[bytes]:
    return [whole[start : start + size] for start in range(0, len(whole), size)]
