"""The four phases of a masked round: what the server gathers in each, whichever engine carries it, and the sum.

`Gathered` is the server's side. It sees public keys, sealed shares, masked words and what is revealed, and knows
neither Flower nor secrets: those are in the client's `privacy.turn.Turn`. `MaskedRound.play` is both sides in one
process. A client may be lost in any phase.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import UInt64

from florist.errors import BelowThresholdError
from florist.federation.contributions import NOBODY, Contribution, Lost
from florist.privacy.keys import PublicKeys
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

    def words(self, client_id: str) -> int:
        """How many words a client sends."""
        return self.layout.words(self.ranks[client_id])

    def begun(self, client_id: str) -> Turn:
        """A client's part, with new secrets."""
        return Turn.begun(
            client_id,
            self.round_number,
            self.words(client_id),
            smallest_threshold=self.threshold,
            smallest_group=self.smallest_group,
        )

    def gathered(self, published: Mapping[str, PublicKeys]) -> "Gathered":
        """The server's side after the first phase.

        Args:
            published: the public keys that have arrived, by client id.

        Raises:
            BelowThresholdError: they are too few, or too few of them are of the largest rank.
            RosterError: the roster is not safe.
        """
        if len(published) < self.threshold:
            raise BelowThresholdError(
                f"round {self.round_number}: expected {self.threshold} clients or more that publish keys, got "
                f"{len(published)}: {self.threshold - len(published)} too few, and nothing of the round can be read; "
                "ask again when more can be reached, or lower privacy.threshold"
            )
        members = {client_id: Member(keys, self.words(client_id)) for client_id, keys in published.items()}
        return Gathered(self, Roster(self.run, self.round_number, self.threshold, members, self.smallest_group))

    def play(self, contributions: Mapping[str, Contribution], lost: Lost = NOBODY) -> MaskedOutcome:
        """Play the four phases.

        Args:
            contributions: what each client puts in, by id.
            lost: who is lost on the way.

        Raises:
            RosterError: the roster is not safe.
            BelowThresholdError: too few clients are left in some phase, and nothing can be read.

        Cost: for each client, a key agreement and a pass over its words for each other client.
        """
        turns = {client_id: self.begun(client_id) for client_id in sorted(contributions)}
        gathered = self.gathered({client_id: turn.public for client_id, turn in turns.items()})

        sealed: dict[str, Mapping[str, bytes]] = {}
        for client_id in _left(turns, lost.after_keys):
            sealed[client_id], turns[client_id] = turns[client_id].shared(gathered.roster)
        gathered = gathered.with_shares(sealed)

        words: dict[str, UInt64[np.ndarray, " words"]] = {}
        for client_id in _left(sealed, lost.after_shares):
            mine = contributions[client_id]
            encoded = self.layout.encoded(
                mine.change.B, mine.change.saved_parameters, mine.weight, self.ranks[client_id]
            )
            words[client_id], turns[client_id] = turns[client_id].masked(gathered.sealed_for(client_id), encoded)
        gathered = gathered.with_words(words)

        revealed: dict[str, Revealed] = {}
        for client_id in _left(words, lost.after_words):
            revealed[client_id], turns[client_id] = turns[client_id].revealed(gathered.survivors)
        return gathered.outcome(revealed)


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """What the server has of a masked round, a phase after the other; each step gives what to go on with.

    Attributes:
        settings: of the round.
        roster: the clients that published keys.
        sealed: what each of them sealed for each, by sender and receiver, once that has arrived.
        words: the masked words, by client id, once they have arrived.
    """

    settings: MaskedRound
    roster: Roster
    sealed: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict[str, Mapping[str, bytes]])
    words: Mapping[str, UInt64[np.ndarray, " words"]] = field(
        default_factory=dict[str, UInt64[np.ndarray, " words"]], repr=False
    )

    @property
    def survivors(self) -> frozenset[str]:
        """The clients whose words have arrived, which are in the sum."""
        return frozenset(self.words)

    @property
    def lost_sharers(self) -> frozenset[str]:
        """The clients whose shares went round, and whose words have not arrived."""
        return frozenset(self.sealed) - self.survivors

    def sealed_for(self, client_id: str) -> Mapping[str, bytes]:
        """What the clients sealed for one of them, by sender."""
        return {sender: shares[client_id] for sender, shares in sorted(self.sealed.items())}

    def with_shares(self, sealed: Mapping[str, Mapping[str, bytes]]) -> "Gathered":
        """The same after the second phase.

        Raises:
            BelowThresholdError: too few clients have shared.
        """
        require_reachable(self.roster, len(sealed))
        return replace(self, sealed=sealed)

    def with_words(self, words: Mapping[str, UInt64[np.ndarray, " words"]]) -> "Gathered":
        """The same after the third phase.

        Raises:
            BelowThresholdError: too few clients have sent words, or too few of the largest rank.
        """
        require_reachable(self.roster, len(words))
        self.roster.require_groups(words)
        return replace(self, words=words)

    def outcome(self, revealed: Mapping[str, Revealed]) -> MaskedOutcome:
        """The sum, after the last phase.

        Args:
            revealed: the shares that have arrived, by client id.

        Raises:
            BelowThresholdError: they are too few.
            RosterError, BrokenSharesError: a client revealed something else than it was asked for.
        """
        total = unmasked_sum(self.roster, set(self.sealed), self.words, revealed)
        ranks, members = self.settings.ranks, self.roster.members
        decoded = self.settings.layout.decoded(total, {client_id: ranks[client_id] for client_id in self.words})
        others = _PUBLIC_BYTES + len(members) * SEALED_BYTES + len(self.sealed) * SHARE_BYTES
        named = 2 * sum(len(name.encode()) for name in members)
        return MaskedOutcome(
            decoded,
            {name: others + _WORD_BYTES * len(each) for name, each in self.words.items()},
            len(members) * (_PUBLIC_BYTES + _WORD_BYTES) + len(self.sealed) * SEALED_BYTES + named,
        )


def _left(clients: Collection[str], gone: Collection[str]) -> list[str]:
    return sorted(set(clients) - set(gone))
