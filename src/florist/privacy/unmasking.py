"""What the server does at the end of a masked round: it adds the words and takes the masks off the sum."""

from collections.abc import Callable, Collection, Mapping

import numpy as np
from jaxtyping import UInt64

from florist.errors import BrokenSharesError, RosterError
from florist.privacy.keys import commitment, keystream, public_key
from florist.privacy.masking import Revealed, self_mask_key, with_pair_mask
from florist.privacy.roster import Roster, require_enough
from florist.privacy.shamir import FIELD, join_bytes


def unmasked_sum(
    roster: Roster,
    sharers: Collection[str],
    words: Mapping[str, UInt64[np.ndarray, " words"]],
    shares: Mapping[str, Revealed],
) -> UInt64[np.ndarray, " words"]:
    """The sum of the words that clients masked, modulo 2^64, and of nothing less.

    Shorter words count as zeros where they end.

    Args:
        roster: the round.
        sharers: the clients whose shares went round: their masks are in the words.
        words: the masked words that have arrived, by client id.
        shares: what clients revealed, by client id.

    Raises:
        RosterError: somebody is not in the roster, or a client revealed what it was not asked for.
        BelowThresholdError: fewer clients than the threshold have sent words, or have revealed shares.
        BrokenSharesError: shares do not give what was published.

    Cost: a pass over the words for each client that is left; for each that is not, one for each that is.
    """
    roster.require_members(words, "with words")
    roster.require_members(shares, "with shares of the masks")
    roster.require_groups(words)
    for client_id, each in words.items():
        if len(each) != roster.members[client_id].words:
            raise RosterError(
                f"{client_id}: expected {roster.members[client_id].words} words, as the roster says, got {len(each)}; "
                "the client is left out"
            )
    lost = set(sharers) - set(words)
    for client_id, each in shares.items():
        if set(each.seeds) != set(words) or set(each.masking_keys) != lost:
            raise RosterError(
                f"{client_id}: expected shares of the seeds of those whose words arrived, and of the keys of the "
                "others, got others; the client is left out"
            )
    result = np.zeros(max(len(each) for each in words.values()), dtype=np.uint64)
    for client_id in sorted(words):
        result[: len(words[client_id])] += words[client_id]
    # The same holders answer for all: the weights of their shares are computed once.
    holders = sorted(shares)[: roster.threshold]
    weights = FIELD.weights([roster.places[holder] for holder in holders])

    def joined(of: str, chosen: Callable[[Revealed], Mapping[str, bytes]]) -> bytes:
        return join_bytes({roster.places[holder]: chosen(shares[holder])[of] for holder in holders}, weights)

    for client_id in sorted(words):
        seed = joined(client_id, lambda each: each.seeds)
        if commitment(seed) != roster.members[client_id].keys.commitment:
            raise _broken(client_id, roster)
        count = len(words[client_id])
        result[:count] -= keystream(self_mask_key(seed, roster), count)
    for client_id in sorted(lost):
        private = joined(client_id, lambda each: each.masking_keys)
        if public_key(private) != roster.members[client_id].keys.masking:
            raise _broken(client_id, roster)
        for other in sorted(words):
            result = with_pair_mask(result, other, client_id, private, roster, remove=True)
    return result


def require_reachable(roster: Roster, left: int) -> None:
    """Check between two phases that the round can still end.

    Raises:
        BelowThresholdError: fewer clients than the threshold are left.
    """
    require_enough(roster, left, "that are still there")


def _broken(client_id: str, roster: Roster) -> BrokenSharesError:
    return BrokenSharesError(
        f"round {roster.round_number}: expected shares that give the secret that {client_id} published, and they give "
        "another: a client revealed a wrong one; the round is left out"
    )
