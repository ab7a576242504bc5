"""The masked sum is the plain sum, to the last bit, and nothing else can be read."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florist.errors import BelowThresholdError, BrokenSharesError, RosterError
from florist.privacy.keys import PublicKeys, Secrets, agreed_key
from florist.privacy.masking import SEALED_BYTES, Revealed
from florist.privacy.roster import Member, Roster
from florist.privacy.turn import Turn
from florist.privacy.unmasking import unmasked_sum
from tests.privacy.rounds import begun, played, roster_of


def random_words(lengths: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 2**64, size, dtype=np.uint64) for name, size in lengths.items()}


def plain_sum(words: Mapping[str, np.ndarray]) -> np.ndarray:
    total = np.zeros(max(len(each) for each in words.values()), dtype=np.uint64)
    for each in words.values():
        total[: len(each)] += each
    return total


@given(st.data())
@settings(max_examples=60)
def test_the_masked_sum_is_the_plain_sum_for_any_survivors(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 7))
    names = [f"site {i}" for i in range(count)]
    threshold = data.draw(st.integers(max(2, count // 2 + 1), count))
    longest = data.draw(st.integers(1, 6))
    lengths = {name: longest if i < threshold else data.draw(st.integers(1, longest)) for i, name in enumerate(names)}
    words = random_words(lengths, data.draw(st.integers(0, 99)))
    order = data.draw(st.permutations(names))
    cuts = sorted(data.draw(st.lists(st.integers(threshold, count), min_size=3, max_size=3)), reverse=True)
    lost = [order[cuts[0] :], order[cuts[1] : cuts[0]], order[cuts[2] : cuts[1]]]
    survivors = [lengths[name] for name in order[: cuts[1]]]
    if survivors.count(max(survivors)) < 2:
        with pytest.raises(BelowThresholdError, match="largest rank"):
            played(words, threshold, lost_after_keys=lost[0], lost_after_shares=lost[1], lost_after_words=lost[2])
        return
    seen = played(words, threshold, lost_after_keys=lost[0], lost_after_shares=lost[1], lost_after_words=lost[2])
    assert set(seen.words) == set(order[: cuts[1]])
    assert np.array_equal(seen.sum, plain_sum({name: words[name] for name in seen.words}))


@pytest.mark.parametrize(
    "lost",
    [{"lost_after_keys": 2}, {"lost_after_shares": 2}, {"lost_after_words": 2}],
    ids=lambda lost: next(iter(lost)),
)
def test_below_the_threshold_nothing_can_be_read(lost: Mapping[str, int]) -> None:
    words = random_words(dict.fromkeys("abcd", 3))
    with pytest.raises(BelowThresholdError, match=r"expected 3 of 4 clients .*, got 2: 1 too few"):
        assert played(words, 3, **dict.fromkeys(lost, "cd")).sum.size


def test_each_number_is_summed_over_the_smallest_group() -> None:
    words = random_words({"a": 5, "b": 5, "c": 5, "d": 2})
    assert np.array_equal(played(words, 3, smallest_group=3).sum, plain_sum(words))
    with pytest.raises(
        BelowThresholdError, match="expected 3 clients or more that send numbers of the largest rank, got 2"
    ):
        played(words, 3, smallest_group=3, lost_after_shares="a")
    with pytest.raises(BelowThresholdError, match="got 1"):
        played(random_words({"a": 5, "b": 4, "c": 4}), 2)


def test_what_the_server_receives_is_uniform() -> None:
    """Chi-square over the bytes of many rounds: the words of one client, all zeros, and the sum of all but one."""
    words = {name: np.zeros(64, dtype=np.uint64) for name in "abc"}
    counts = np.zeros((2, 256))
    rounds = 60
    for _ in range(rounds):
        seen = played(words, 2)
        counts[0] += np.bincount(np.frombuffer(seen.words["a"].tobytes(), np.uint8), minlength=256)
        partial = seen.words["a"] + seen.words["b"]
        counts[1] += np.bincount(np.frombuffer(partial.tobytes(), np.uint8), minlength=256)
    expected = rounds * 64 * 8 / 256
    chi_square = ((counts - expected) ** 2 / expected).sum(axis=1)
    # 255 degrees of freedom: mean 255, standard deviation 22.6; six of them either way.
    assert (np.abs(chi_square - 255) < 6 * 22.6).all()


def test_two_rounds_of_the_same_words_have_nothing_in_common() -> None:
    words = random_words(dict.fromkeys("abc", 8))
    first, second = played(words, 2), played(words, 2)
    assert not np.intersect1d(first.words["a"], second.words["a"]).size


def test_without_the_words_of_one_the_sum_of_the_others_stays_masked() -> None:
    words = random_words(dict.fromkeys("abc", 8))
    seen = played(words, 2)
    without = {name: each for name, each in seen.words.items() if name != "c"}
    with pytest.raises(RosterError, match="expected shares of the seeds"):
        unmasked_sum(seen.roster, seen.sharers, without, seen.shares)
    # A server that does not check: the shares of c's seed do not help, its masks with a and b stay.
    shares = {
        name: Revealed({k: v for k, v in each.seeds.items() if k != "c"}, {}) for name, each in seen.shares.items()
    }
    wrong = unmasked_sum(seen.roster, set(without), without, shares)
    assert not (wrong == plain_sum({name: words[name] for name in without})).any()


def test_messages_beside_the_words_have_a_constant_size() -> None:
    for length in (1, 1000):
        turns = begun(dict.fromkeys("abc", length))
        sealed, _ = turns["a"].shared(roster_of(turns, 2))
        assert {len(each) for each in sealed.values()} == {SEALED_BYTES}
        assert SEALED_BYTES == 82


def test_shares_reveal_once_and_words_are_sent_once() -> None:
    seen = played(random_words(dict.fromkeys("abc", 2)), 2)
    turn = seen.turns["a"]
    assert turn.secrets is None
    with pytest.raises(RosterError, match="reveals nothing a second time"):
        turn.revealed({"a", "b"})
    with pytest.raises(RosterError, match="sends nothing a second time"):
        turn.masked({}, np.zeros(2, dtype=np.uint64))
    turns = begun(dict.fromkeys("ab", 1))
    roster = roster_of(turns, 2)
    sealed = {}
    for name in "ab":
        sealed[name], turns[name] = turns[name].shared(roster)
    received = {sender: shares["a"] for sender, shares in sealed.items()}
    _, once = turns["a"].masked(received, np.zeros(1, dtype=np.uint64))
    with pytest.raises(RosterError, match="send its words once"):
        once.masked(received, np.ones(1, dtype=np.uint64))


def test_shares_are_sealed_once_since_a_key_seals_one_message() -> None:
    turns = begun(dict.fromkeys("ab", 1))
    roster = roster_of(turns, 2)
    _, told = turns["a"].shared(roster)
    with pytest.raises(RosterError, match="share its secrets once"):
        told.shared(roster)


def test_unlike_rosters_are_found_out() -> None:
    """The server tells a one roster, and b and c another, in which a's key is the server's own."""
    turns = begun(dict.fromkeys("abc", 2))
    honest = roster_of(turns, 2)
    forged_member = Member(Secrets.drawn().public, 2)
    forged = Roster(honest.run, 1, 2, {**honest.members, "c": forged_member})
    sealed = {}
    for name, told in (("a", forged), ("b", honest), ("c", honest)):
        sealed[name], turns[name] = turns[name].shared(told)
    received = {sender: shares["a"] for sender, shares in sealed.items()}
    _, turns["a"] = turns["a"].masked(received, np.zeros(2, dtype=np.uint64))
    with pytest.raises(BrokenSharesError, match="gave their sender another roster"):
        turns["a"].revealed({"a", "b", "c"})


def test_a_roster_is_not_changed_within_a_round() -> None:
    turns = begun(dict.fromkeys("abc", 2))
    _, turns["a"] = turns["a"].shared(roster_of(turns, 2))
    changed = {**turns, "b": Turn.begun("b", 1, 2)}
    with pytest.raises(RosterError, match="told before, got another"):
        turns["a"].shared(roster_of(changed, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda roster, other: replace(roster, members={k: v for k, v in roster.members.items() if k != "a"}),
            "its own",
        ),
        (lambda roster, other: replace(roster, members={**roster.members, "a": Member(other, 2)}), "its own keys"),
        (lambda roster, other: replace(roster, round_number=2), "expected the roster of round 1"),
        (lambda roster, other: replace(roster, threshold=3), "threshold of 4 or more"),
        (lambda roster, other: replace(roster, smallest_group=2), "groups of 3 or more"),
    ],
)
def test_a_client_refuses_a_roster(change: object, message: str) -> None:
    turns = {name: Turn.begun(name, 1, 2, smallest_threshold=4, smallest_group=3) for name in "abcde"}
    roster = roster_of(turns, 4, smallest_group=3)
    with pytest.raises(RosterError, match=message):
        turns["a"].shared(change(roster, Secrets.drawn().public))  # type: ignore[operator]


@pytest.mark.parametrize("threshold", [1, 2, 5])
def test_a_threshold_of_at_most_half_or_of_more_than_all_is_refused(threshold: int) -> None:
    turns = begun(dict.fromkeys("abcd", 2))
    with pytest.raises(RosterError, match="above half of the 4 clients"):
        roster_of(turns, threshold)


def test_a_key_in_common_is_refused() -> None:
    turns = begun(dict.fromkeys("abc", 2))
    with pytest.raises(RosterError, match="two are the same"):
        roster_of({**turns, "b": replace(turns["a"], client_id="b")}, 2)


def test_a_wrong_share_is_found_out() -> None:
    words = random_words(dict.fromkeys("abc", 2))
    seen = played(words, 2, lost_after_shares="c")
    honest = seen.shares["b"]
    for wrong in (
        replace(honest, seeds={**honest.seeds, "a": bytes(33)}),
        replace(honest, masking_keys={"c": bytes(33)}),
    ):
        with pytest.raises(BrokenSharesError, match="shares"):
            unmasked_sum(seen.roster, seen.sharers, seen.words, {**seen.shares, "b": wrong})


def test_a_message_that_was_changed_cannot_be_opened() -> None:
    turns = begun(dict.fromkeys("ab", 1))
    roster = roster_of(turns, 2)
    sealed = {}
    for name in "ab":
        sealed[name], turns[name] = turns[name].shared(roster)
    received = {sender: shares["a"] for sender, shares in sealed.items()}
    received["b"] = received["b"][:-1] + bytes([received["b"][-1] ^ 1])
    _, turns["a"] = turns["a"].masked(received, np.zeros(1, dtype=np.uint64))
    with pytest.raises(BrokenSharesError, match="cannot be opened"):
        turns["a"].revealed({"a", "b"})


def test_keys_that_give_a_known_secret_are_refused() -> None:
    with pytest.raises(RosterError, match="everybody knows"):
        agreed_key(Secrets.drawn().masking, bytes(32), b"label")
    with pytest.raises(RosterError, match="32 bytes"):
        PublicKeys(b"short", bytes(32), bytes(32))


def test_survivors_that_shared_nothing_are_refused() -> None:
    words = random_words(dict.fromkeys("abcd", 2))
    turns = begun(dict.fromkeys("abcd", 2))
    roster = roster_of(turns, 3)
    sealed = {}
    for name in "abc":
        sealed[name], turns[name] = turns[name].shared(roster)
    received = {sender: shares["a"] for sender, shares in sealed.items()}
    _, turns["a"] = turns["a"].masked(received, words["a"])
    with pytest.raises(RosterError, match="reveals nothing"):
        turns["a"].revealed({"a", "b", "c", "d"})
    with pytest.raises(RosterError, match="clients of the roster"):
        turns["a"].revealed({"a", "b", "c", "stranger"})


def test_secrets_are_not_shown() -> None:
    turn = Turn.begun("a", 1, 1)
    assert turn.secrets is not None
    for text in (repr(turn), repr(turn.secrets), str(turn)):
        assert turn.secrets.seed.hex() not in text
        assert repr(turn.secrets.seed) not in text
