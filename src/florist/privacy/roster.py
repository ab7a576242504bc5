"""Who takes part in a masked round, with which keys, and how many of them must be left at the end."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from florist.errors import BelowThresholdError, RosterError
from florist.privacy.keys import PublicKeys

FEWEST_CLIENTS = 2
"""A sum of one client is that client's update."""


@dataclass(frozen=True, slots=True)
class Member:
    """One client of a roster.

    Attributes:
        keys: what it published.
        words: how many words of 64 bits it sends, which follows from its rank. The words of a smaller rank are
            the first of those of a larger one.
    """

    keys: PublicKeys
    words: int


@dataclass(frozen=True)  # no slots: the digest is computed once
class Roster:
    """The clients of a masked round. All of them and the server have to have the same one.

    Args:
        run: names the federation, so that no two of them share a key.
        round_number: the round.
        threshold: how many clients have to be left at the end. Fewer can neither end the round nor, together with the
            server, look into an update.
        members: the clients, by id.
        smallest_group: over how many clients each number has to be summed at least. Only clients of large rank have the
            last words, and a sum of few of them tells much of each.

    Raises:
        RosterError: it is not safe: the threshold is at most half of the clients, so that the server could end the
            round twice with two halves of them, two clients have a key in common, or some words are sent by fewer
            clients than the smallest group.
    """

    run: str
    round_number: int
    threshold: int
    members: Mapping[str, Member]
    smallest_group: int = FEWEST_CLIENTS

    def __post_init__(self) -> None:
        """Check that the roster is safe."""
        count = len(self.members)
        if not max(FEWEST_CLIENTS, count // 2 + 1) <= self.threshold <= count:
            raise RosterError(
                f"expected a threshold above half of the {count} clients of round {self.round_number} and at most all "
                f"of them, got {self.threshold}; set privacy.threshold, or wait for more clients"
            )
        keys = [key for member in self.members.values() for key in (member.keys.sealing, member.keys.masking)]
        if len(set(keys)) != len(keys):
            raise RosterError(
                f"expected keys that all differ in the roster of round {self.round_number}, and two are the same; the "
                "round is left out"
            )
        if self.smallest_group < FEWEST_CLIENTS:
            raise RosterError(f"expected groups of {FEWEST_CLIENTS} clients or more, got {self.smallest_group}")
        self.require_groups(self.members)

    def require_groups(self, client_ids: Collection[str]) -> None:
        """Check that each word that these clients send is sent by as many of them as the smallest group.

        Raises:
            BelowThresholdError: the last words are sent by fewer.
        """
        lengths = sorted((self.members[client_id].words for client_id in client_ids), reverse=True)
        longest = lengths.count(lengths[0]) if lengths else 0
        if longest < self.smallest_group:
            raise BelowThresholdError(
                f"round {self.round_number}: expected {self.smallest_group} clients or more that send numbers of the "
                f"largest rank, got {longest}; ask again when more of them can be reached, or set "
                "privacy.smallest_group"
            )

    @cached_property
    def digest(self) -> bytes:
        """The SHA-256 of all that it says."""
        found = hashlib.sha256()
        for part in self._parts():
            found.update(len(part).to_bytes(8, "big") + part)
        return found.digest()

    @cached_property
    def places(self) -> Mapping[str, int]:
        """The place of each client among all, from 1, at which its share of a secret is."""
        return {client_id: place for place, client_id in enumerate(sorted(self.members), start=1)}

    def require(
        self, client_id: str, keys: PublicKeys, words: int, smallest_threshold: int, smallest_group: int
    ) -> None:
        """Check what a client can check of the roster that it was given.

        Args:
            client_id: the client.
            keys: what it published.
            words: how many words it sends.
            smallest_threshold: the smallest that it takes part at.
            smallest_group: the smallest group that it takes part in.

        Raises:
            RosterError: it is not in the roster with its own keys and words, or the threshold or the smallest group is
                too small for it.
        """
        member = self.members.get(client_id)
        if member is None or member != Member(keys, words):
            raise RosterError(
                f"{client_id}: expected its own keys in the roster of round {self.round_number}, and they are missing "
                "or changed; it takes no part in the round"
            )
        if self.threshold < smallest_threshold or self.smallest_group < smallest_group:
            raise RosterError(
                f"{client_id}: expected a threshold of {smallest_threshold} or more and groups of {smallest_group} or "
                f"more in round {self.round_number}, got {self.threshold} and {self.smallest_group}; it takes no part "
                "in the round"
            )

    def require_members(self, client_ids: Collection[str], what: str) -> None:
        """Check that only clients of the roster are named, and as many as the threshold.

        Args:
            client_ids: the clients.
            what: what they did, for the message.

        Raises:
            RosterError: others are named.
            BelowThresholdError: they are too few.
        """
        strangers = sorted(set(client_ids) - set(self.members))
        if strangers:
            raise RosterError(
                f"round {self.round_number}: expected clients of the roster, got {', '.join(strangers[:5])} as well; "
                "the round is left out"
            )
        require_enough(self, len(set(client_ids)), what)

    @property
    def _numbers(self) -> tuple[int, ...]:
        return self.round_number, self.threshold, self.smallest_group, len(self.members)

    def _parts(self) -> list[bytes]:
        numbers = [str(number).encode() for number in self._numbers]
        parts = [b"florist roster 1", self.run.encode(), *numbers]
        for client_id, member in sorted(self.members.items()):
            keys = member.keys
            parts += [client_id.encode(), str(member.words).encode(), keys.sealing, keys.masking, keys.commitment]
        return parts


def require_enough(roster: Roster, count: int, what: str) -> None:
    """Check that so many clients reach the threshold.

    Raises:
        BelowThresholdError: they do not. The message says how many are missing.
    """
    if count < roster.threshold:
        raise BelowThresholdError(
            f"round {roster.round_number}: expected {roster.threshold} of {len(roster.members)} clients {what}, got "
            f"{count}: {roster.threshold - count} too few, and nothing of the round can be read; ask again when more "
            "can be reached, or lower privacy.threshold"
        )
