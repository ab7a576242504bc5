"""A masked round in one process, with clients that vanish in any phase."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt64

from florist.privacy.masking import Revealed
from florist.privacy.roster import Member, Roster
from florist.privacy.turn import Turn
from florist.privacy.unmasking import unmasked_sum


@dataclass(frozen=True)
class Played:
    """What the server has seen of a round."""

    roster: Roster
    words: Mapping[str, UInt64[np.ndarray, " words"]]
    shares: Mapping[str, Revealed]
    sharers: Collection[str]
    turns: Mapping[str, Turn]

    @property
    def sum(self) -> UInt64[np.ndarray, " words"]:
        return unmasked_sum(self.roster, self.sharers, self.words, self.shares)


def begun(words: Mapping[str, int], round_number: int = 1) -> dict[str, Turn]:
    return {client_id: Turn.begun(client_id, round_number, count) for client_id, count in words.items()}


def roster_of(turns: Mapping[str, Turn], threshold: int, smallest_group: int = 2, run: str = "run") -> Roster:
    members = {client_id: Member(turn.public, turn.words) for client_id, turn in turns.items()}
    return Roster(run, next(iter(turns.values())).round_number, threshold, members, smallest_group)


def played(
    words: Mapping[str, UInt64[np.ndarray, " words"]],
    threshold: int,
    *,
    smallest_group: int = 2,
    lost_after_keys: Collection[str] = (),
    lost_after_shares: Collection[str] = (),
    lost_after_words: Collection[str] = (),
) -> Played:
    turns = begun({client_id: len(each) for client_id, each in words.items()})
    roster = roster_of(turns, threshold, smallest_group)
    sealed: dict[str, dict[str, bytes]] = {}
    for client_id in sorted(set(turns) - set(lost_after_keys)):
        sealed[client_id], turns[client_id] = turns[client_id].shared(roster)
    sent: dict[str, UInt64[np.ndarray, " words"]] = {}
    for client_id in sorted(set(sealed) - set(lost_after_shares)):
        received = {sender: shares[client_id] for sender, shares in sealed.items()}
        sent[client_id], turns[client_id] = turns[client_id].masked(received, words[client_id])
    shares: dict[str, Revealed] = {}
    for client_id in sorted(set(sent) - set(lost_after_words)):
        shares[client_id], turns[client_id] = turns[client_id].revealed(set(sent))
    return Played(roster, sent, shares, set(sealed), turns)
