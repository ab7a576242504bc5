"""What a client does in a masked round: it shares its secrets, masks its words, and reveals shares once.

Source: K. Bonawitz et al., Practical secure aggregation for privacy-preserving machine learning (CCS 2017), figure 4,
in the model of honest clients and a curious server. The digest of the roster goes into each key, and whoever is told
another roster is found out when shares are opened.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt64

from florist.errors import BrokenSharesError, RosterError
from florist.privacy.keys import Secrets, agreed_key, derived_key, keystream, opened, public_key, sealed
from florist.privacy.roster import Roster
from florist.privacy.shamir import SHARE_BYTES, share_bytes

SEALED_BYTES = 2 * SHARE_BYTES + 16
"""The bytes of what one client seals for another, however large the model is."""


@dataclass(frozen=True, slots=True)
class Revealed:
    """What a client reveals at the end of a round, of each client one of two shares and never both.

    Attributes:
        seeds: its shares of the self masks' seeds of those whose words have arrived, by client id.
        masking_keys: its shares of the masking keys of the others.
    """

    seeds: Mapping[str, bytes]
    masking_keys: Mapping[str, bytes]


def sealed_shares(client_id: str, own: Secrets, roster: Roster) -> dict[str, bytes]:
    """The client's shares of its masking key and of its seed, sealed for each other client.

    Its own share is kept by itself, so that `revealed` needs it in what the client has received.

    Raises:
        RosterError: a key of the roster is none.

    Cost: two passes over the roster and one key agreement a client, about 0.1 ms each.
    """
    places = roster.places
    of_key = share_bytes(own.masking, roster.threshold, places.values())
    of_seed = share_bytes(own.seed, roster.threshold, places.values())
    return {
        other: sealed(
            _sealing_key(own, other, roster, client_id, other),
            of_key[places[other]] + of_seed[places[other]],
            roster.digest + _direction(client_id, other),
        )
        for other in roster.members
    }


def masked(
    client_id: str, own: Secrets, roster: Roster, sharers: Collection[str], words: UInt64[np.ndarray, " words"]
) -> UInt64[np.ndarray, " words"]:
    """The client's words under the masks that it has in common with each other client, and its self mask.

    Clients may have unlike numbers of words: two of them mask those that both have.

    Args:
        client_id: the client.
        own: its secrets.
        roster: the round.
        sharers: the clients whose shares have arrived, this one among them.
        words: the words that the sum is made of.

    Raises:
        RosterError: others than those of the roster are named, or the client itself is not.
        BelowThresholdError: too few have shared.

    Cost: a key agreement (0.1 ms) and a pass over the words for each other client.
    """
    roster.require_members(sharers, "with shares")
    if client_id not in sharers:
        raise RosterError(f"{client_id}: expected its own shares to have arrived; it takes no part in the round")
    if len(words) != roster.members[client_id].words:
        raise RosterError(
            f"{client_id}: expected {roster.members[client_id].words} words, as the roster says, got {len(words)}; it "
            "takes no part in the round"
        )
    result = words + keystream(self_mask_key(own.seed, roster), len(words))
    for other in sorted(set(sharers) - {client_id}):
        result = with_pair_mask(result, client_id, other, own.masking, roster)
    return result


def revealed(
    client_id: str, own: Secrets, roster: Roster, received: Mapping[str, bytes], survivors: Collection[str]
) -> Revealed:
    """The shares that the server needs to take the masks off: seeds of those that are left, keys of the others.

    A client answers this once a round: both shares of one client would open its update. `Turn` sees to that.

    Args:
        client_id: the client.
        own: its secrets.
        roster: the round.
        received: what the clients sealed for this one, its own as well.
        survivors: the clients whose words have arrived.

    Raises:
        RosterError: survivors are named that shared nothing.
        BelowThresholdError: they are too few.
        BrokenSharesError: shares cannot be opened, or somebody was told another roster.
    """
    roster.require_members(received, "with shares")
    roster.require_members(survivors, "with words")
    roster.require_groups(survivors)
    unknown = sorted(set(survivors) - set(received))
    if unknown:
        raise RosterError(
            f"{client_id}: expected words of clients that have shared their secrets, got {', '.join(unknown[:5])} as "
            "well; it reveals nothing"
        )
    seeds: dict[str, bytes] = {}
    masking_keys: dict[str, bytes] = {}
    for other, content in sorted(received.items()):
        key = _sealing_key(own, other, roster, other, client_id)
        both = opened(key, content, roster.digest + _direction(other, client_id))
        if len(both) != 2 * SHARE_BYTES:
            raise BrokenSharesError(f"expected two shares of {SHARE_BYTES} bytes of {other}; the round is left out")
        if other in survivors:
            seeds[other] = both[SHARE_BYTES:]
        else:
            masking_keys[other] = both[:SHARE_BYTES]
    return Revealed(seeds, masking_keys)


def with_pair_mask(
    words: UInt64[np.ndarray, " words"],
    client_id: str,
    other: str,
    private: bytes,
    roster: Roster,
    *,
    remove: bool = False,
) -> UInt64[np.ndarray, " words"]:
    """A client's words under the mask that it has in common with another, which cancels in the sum of both.

    Args:
        words: the words of the client, or a sum that they are in.
        client_id: the client.
        other: the other, whose words may be fewer: those that both send are masked.
        private: the masking key of either.
        roster: the round.
        remove: take the mask off.
    """
    member, peer = roster.members[client_id], roster.members[other]
    public = peer.keys.masking if public_key(private) == member.keys.masking else member.keys.masking
    count = min(member.words, peer.words)
    stream = keystream(pair_mask_key(private, public, roster), count)
    result = words.copy()
    if (client_id < other) != remove:
        result[:count] += stream
    else:
        result[:count] -= stream
    return result


def self_mask_key(seed: bytes, roster: Roster) -> bytes:
    """The key of a client's own mask."""
    return derived_key(seed, b"self mask " + roster.digest)


def pair_mask_key(private: bytes, public: bytes, roster: Roster) -> bytes:
    """The key of the mask that two clients have in common."""
    return agreed_key(private, public, b"pair mask " + roster.digest)


def _sealing_key(own: Secrets, other: str, roster: Roster, sender: str, receiver: str) -> bytes:
    # The direction is in the label: a key seals one message, of one sender for one receiver. A client seals for itself
    # as well, so that what it keeps needs no other form.
    label = b"sealing " + roster.digest + _direction(sender, receiver)
    return agreed_key(own.sealing, roster.members[other].keys.sealing, label)


def _direction(sender: str, receiver: str) -> bytes:
    return f"{len(sender)} {sender} {receiver}".encode()
