"""The messages of the phases of a masked round, as contents of Flower's messages, and back.

    server                              client
    train.keys, Instruction       ->
                                  <-    PublishedKeys, or OutOfStep where the download does not fit
    query.shares, RosterTold      ->
                                  <-    SealedShares, one for each client of the roster
    query.words, SharesTold       ->
                                  <-    MaskedWords
    query.reveal, SurvivorsTold   ->
                                  <-    RevealedShares

None of a client's answers has its loss, the number of its examples or a norm. Keys, shares and words are rows of bytes;
whose they are follows from the order of the roster's names. Who reads an answer knows how many bytes it must have.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from flwr.app import RecordDict
from jaxtyping import UInt64

from florist.errors import InvalidUpdateError, RosterError
from florist.flower.arrays import arrays_to_tensors, tensors_to_arrays
from florist.flower.envelope import PRIVATE, arrays_in, content_of, kind_of, read_head
from florist.flower.limits import Limits
from florist.flower.messages import OutOfStep
from florist.flower.private_messages import (
    MOST_CLIENTS,
    MaskedWords,
    Published,
    PublishedKeys,
    RevealedShares,
    RosterTold,
    SealedShares,
    SharesTold,
    SurvivorsTold,
)
from florist.privacy.keys import KEY_BYTES, PublicKeys, require_usable
from florist.privacy.masking import SEALED_BYTES, Revealed
from florist.privacy.roster import Member, Roster
from florist.privacy.shamir import SHARE_BYTES

Answer = type[SealedShares] | type[MaskedWords] | type[RevealedShares]


# --- the first phase


def write_keys(said: PublishedKeys, keys: PublicKeys) -> RecordDict:
    """The content of a client's answer of the first phase."""
    return _with_rows(said, [keys.sealing, keys.masking, keys.commitment])


def read_keys(content: RecordDict) -> Published | OutOfStep:
    """Read a client's answer of the first phase.

    Raises:
        InvalidUpdateError: it is none, or too large.
        RosterError: the keys are of no use.
    """
    Limits.of_bytes(3 * KEY_BYTES).require(content)
    if kind_of(content) == OutOfStep.__name__:
        return read_head(content, OutOfStep)
    said = read_head(content, PublishedKeys)
    keys = PublicKeys(*_rows(content, 3, KEY_BYTES))
    require_usable(keys)
    return Published(said, keys)


def write_roster(roster: Roster) -> RecordDict:
    """The content of a roster."""
    names = sorted(roster.members)
    members = [roster.members[name] for name in names]
    told = RosterTold(
        roster.run,
        roster.round_number,
        roster.threshold,
        roster.smallest_group,
        names,
        [member.words for member in members],
    )
    keys = [member.keys.sealing + member.keys.masking + member.keys.commitment for member in members]
    return _with_rows(told, keys)


def read_roster(content: RecordDict) -> Roster:
    """Read a roster.

    Raises:
        InvalidUpdateError: it is none.
        RosterError: it is not safe.
    """
    Limits.of_bytes(MOST_CLIENTS * 3 * KEY_BYTES).require(content)
    told = read_head(content, RosterTold)
    if not len(told.names) == len(set(told.names)) == len(told.words):
        raise InvalidUpdateError("expected the words of every client of a roster, each once")
    rows = _rows(content, len(told.names), 3 * KEY_BYTES)
    members = {
        name: Member(PublicKeys(row[:KEY_BYTES], row[KEY_BYTES : 2 * KEY_BYTES], row[2 * KEY_BYTES :]), words)
        for name, words, row in zip(told.names, told.words, rows, strict=True)
    }
    return Roster(told.run, told.round_number, told.threshold, members, told.smallest_group)


# --- the second phase


def write_sealed(roster: Roster, sealed: Mapping[str, bytes]) -> RecordDict:
    """The content of a client's answer of the second phase: what it sealed, by receiver."""
    return _with_rows(SealedShares(roster.digest.hex()), [sealed[name] for name in sorted(roster.members)])


def read_sealed(content: RecordDict, roster: Roster) -> Mapping[str, bytes]:
    """Read a client's answer of the second phase.

    Raises:
        InvalidUpdateError: it is none, of another roster, or of another size.
    """
    names = sorted(roster.members)
    return dict(zip(names, _answered(content, SealedShares, roster, len(names), SEALED_BYTES), strict=True))


def write_received(roster: Roster, received: Mapping[str, bytes]) -> RecordDict:
    """The content of what was sealed for one client, by sender."""
    names = sorted(received)
    return _with_rows(SharesTold(roster.digest.hex(), names), [received[name] for name in names])


def read_received(content: RecordDict, roster: Roster) -> Mapping[str, bytes]:
    """Read what was sealed for a client.

    Raises:
        InvalidUpdateError, RosterError: it is nothing of the kind, or of another roster.
    """
    Limits.of_bytes(MOST_CLIENTS * SEALED_BYTES).require(content)
    told = read_head(content, SharesTold)
    _require_roster(told.roster, roster)
    return dict(zip(told.names, _rows(content, len(told.names), SEALED_BYTES), strict=True))


# --- the third phase


def write_words(roster: Roster, words: UInt64[np.ndarray, " words"]) -> RecordDict:
    """The content of a client's masked words."""
    return content_of(MaskedWords(roster.digest.hex()), {PRIVATE: tensors_to_arrays({"words": words_as_tensor(words)})})


def read_words(content: RecordDict, roster: Roster, client_id: str) -> UInt64[np.ndarray, " words"]:
    """Read a client's masked words.

    Raises:
        InvalidUpdateError: they are none, of another roster, or not as many as the roster says.
    """
    count = roster.members[client_id].words
    Limits.of_bytes(8 * count).require(content)
    _require_roster(read_head(content, MaskedWords).roster, roster)
    return words_of_tensor(_tensor(content, "words", (count,), torch.int64))


def words_as_tensor(words: UInt64[np.ndarray, " words"]) -> torch.Tensor:
    """Words as a tensor: the same bits, as signed numbers."""
    return torch.from_numpy(words.view(np.int64))


def words_of_tensor(tensor: torch.Tensor) -> UInt64[np.ndarray, " words"]:
    """The inverse of `words_as_tensor`."""
    return tensor.numpy().view(np.uint64)


# --- the last phase


def write_survivors(roster: Roster, survivors: Collection[str]) -> RecordDict:
    """The content of who has sent words."""
    return content_of(SurvivorsTold(roster.digest.hex(), sorted(survivors)), {})


def read_survivors(content: RecordDict, roster: Roster) -> frozenset[str]:
    """Read who has sent words.

    Raises:
        InvalidUpdateError, RosterError: it is nothing of the kind, or of another roster.
    """
    Limits.of_bytes(0).require(content)
    told = read_head(content, SurvivorsTold)
    _require_roster(told.roster, roster)
    return frozenset(told.names)


def write_revealed(roster: Roster, revealed: Revealed) -> RecordDict:
    """The content of a client's answer of the last phase."""
    both = (revealed.seeds, revealed.masking_keys)
    return _with_rows(RevealedShares(roster.digest.hex()), [of[name] for of in both for name in sorted(of)])


def read_revealed(
    content: RecordDict, roster: Roster, survivors: Collection[str], lost_sharers: Collection[str]
) -> Revealed:
    """Read a client's answer of the last phase.

    Raises:
        InvalidUpdateError: it is none, of another roster, or of another size.
    """
    count = len(survivors) + len(lost_sharers)
    rows = _answered(content, RevealedShares, roster, count, SHARE_BYTES)
    seeds, keys = rows[: len(survivors)], rows[len(survivors) :]
    return Revealed(
        dict(zip(sorted(survivors), seeds, strict=True)), dict(zip(sorted(lost_sharers), keys, strict=True))
    )


def _answered(content: RecordDict, kind: Answer, roster: Roster, count: int, nbytes: int) -> list[bytes]:
    Limits.of_bytes(count * nbytes).require(content)
    _require_roster(read_head(content, kind).roster, roster)
    return _rows(content, count, nbytes)


def _require_roster(digest: str, roster: Roster) -> None:
    if digest != roster.digest.hex():
        raise RosterError(
            f"expected a message of the roster of round {roster.round_number}, got one of another roster; it is not "
            "answered"
        )


def _with_rows(head: object, rows: Sequence[bytes]) -> RecordDict:
    width = len(rows[0]) if rows else 0
    flat = np.frombuffer(b"".join(rows), dtype=np.uint8).copy()
    return content_of(head, {PRIVATE: tensors_to_arrays({"rows": torch.from_numpy(flat.reshape(len(rows), width))})})


def _rows(content: RecordDict, count: int, nbytes: int) -> list[bytes]:
    return [row.numpy().tobytes() for row in _tensor(content, "rows", (count, nbytes), torch.uint8)]


def _tensor(content: RecordDict, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    found = arrays_to_tensors(arrays_in(content, PRIVATE)).get(name)
    if found is None or tuple(found.shape) != shape or found.dtype != dtype:
        got = "nothing" if found is None else f"the shape {tuple(found.shape)} in {found.dtype}"
        raise InvalidUpdateError(f"expected {name} of the shape {shape} in {dtype}, got {got}")
    return found
