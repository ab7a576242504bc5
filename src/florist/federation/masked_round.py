"""The four phases of a masked round in one process: what each client does, and what the server reads at the end.

The objects are those that a client has to itself: `privacy.turn.Turn` holds its secrets, and the functions of the
server see public keys, sealed shares, masked words and what is revealed. A client may be lost in any phase.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt64

from florist.federation.contributions import NOBODY, Contribution, Lost
from florist.privacy.layout import Layout, MaskedSum
from florist.privacy.masking import SEALED_BYTES, Revealed
from florist.privacy.roster import Member, Roster
from florist.privacy.shamir import SHARE_BYTES
from florist.privacy.turn import Turn
from florist.privacy.unmasking import require_reachable, unmasked_sum

_PUBLIC_BYTES = 3 * 32
_WORD_BYTES = 8


@dataclass(frozen=True, slots=True, eq=False)
class MaskedOutcome:
    """What comes of a masked round.

    Attributes:
        sum: what the server reads.
        sent_bytes: by client in the sum, what it sent in all phases.
        received_bytes: what each of them was sent: public keys, sealed shares, and the names of clients.
    """

    sum: MaskedSum
    sent_bytes: Mapping[str, int]
    received_bytes: int


@dataclass(frozen=True, slots=True)
class MaskedRound:
    """The settings of one masked round, which all clients know.

    Args:
        run: names the federation.
        round_number: the round.
        threshold: how many clients have to be left at the end.
        smallest_group: over how many clients each number is summed at least.
        layout: the order of the numbers in the words.
        ranks: the rank that each client sends, padded.
    """

    run: str
    round_number: int
    threshold: int
    smallest_group: int
    layout: Layout
    ranks: Mapping[str, int]

    def play(self, contributions: Mapping[str, Contribution], lost: Lost = NOBODY) -> MaskedOutcome:
        """Play the four phases.

        Args:
            contributions: what each client puts in, by id.
            lost: who is lost on the way.

        Raises:
            RosterError: the roster is not safe; it has fewer clients than the threshold, for instance.
            BelowThresholdError: too few clients are left in some phase, and nothing can be read.

        Cost: for each client, a key agreement and a pass over its words for each other client.
        """
        turns = {
            client_id: Turn.begun(
                client_id,
                self.round_number,
                self.layout.words(self.ranks[client_id]),
                smallest_threshold=self.threshold,
                smallest_group=self.smallest_group,
            )
            for client_id in sorted(contributions)
        }
        members = {client_id: Member(turn.public, turn.words) for client_id, turn in turns.items()}
        roster = Roster(self.run, self.round_number, self.threshold, members, self.smallest_group)

        sealed: dict[str, Mapping[str, bytes]] = {}
        for client_id in _left(turns, lost.after_keys):
            sealed[client_id], turns[client_id] = turns[client_id].shared(roster)
        require_reachable(roster, len(sealed))

        words: dict[str, UInt64[np.ndarray, " words"]] = {}
        for client_id in _left(sealed, lost.after_shares):
            mine = contributions[client_id]
            encoded = self.layout.encoded(
                mine.change.B, mine.change.saved_parameters, mine.weight, self.ranks[client_id]
            )
            received = {sender: shares[client_id] for sender, shares in sealed.items()}
            words[client_id], turns[client_id] = turns[client_id].masked(received, encoded)
        require_reachable(roster, len(words))
        roster.require_groups(words)

        revealed: dict[str, Revealed] = {}
        for client_id in _left(words, lost.after_words):
            revealed[client_id], turns[client_id] = turns[client_id].revealed(set(words))
        total = unmasked_sum(roster, set(sealed), words, revealed)
        decoded = self.layout.decoded(total, {client_id: self.ranks[client_id] for client_id in words})
        others = _PUBLIC_BYTES + len(roster.members) * SEALED_BYTES + len(sealed) * SHARE_BYTES
        named = 2 * sum(len(name.encode()) for name in members)
        return MaskedOutcome(
            decoded,
            {name: others + _WORD_BYTES * len(each) for name, each in words.items()},
            len(members) * (_PUBLIC_BYTES + _WORD_BYTES) + len(sealed) * SEALED_BYTES + named,
        )


def _left(clients: Collection[str], gone: Collection[str]) -> list[str]:
    return sorted(set(clients) - set(gone))
