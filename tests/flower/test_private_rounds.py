"""Masked rounds over Flower: the sum of the engine in one process, whoever is lost, and nothing less for the server."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch import Tensor

from florist.aggregation import FedIt
from florist.errors import ConfigurationError
from florist.federation.contributions import NOBODY, Lost
from florist.federation.private_rounds import PrivateRounds
from florist.federation.protections import Masks, Noise
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.flower import FloristStrategy, Journal
from florist.flower.arrays import arrays_to_tensors, digest, tensors_to_arrays
from florist.flower.messages import EVALUATE, HELLO, KEYS, REVEAL, SHARES, TRAIN, WORDS
from florist.flower.private_terms import Demands
from florist.privacy.accounting import Accountant, Sampling
from florist.privacy.clipping import AdaptiveClip
from florist.rounds import Aggregator
from tests.federation.private_federations import FFA, RANKS, SHAPES
from tests.flower.grids import MemoryGrid, unavailable
from tests.flower.private_participants import (
    HEAD,
    MASKED,
    NODES,
    WHOLE,
    Trainer,
    answering,
    assert_same_bits,
    between,
    losing,
    trainers,
)


def numbers(state: ServerState) -> Mapping[str, Tensor]:
    factors = {f"{name}.{half}": getattr(f, half) for name, f in state.global_adapter.items() for half in "BA"}
    return {**factors, **state.saved_parameters}


def in_one_process(
    private: PrivateRounds, clients: Mapping[str, Trainer], aggregator: Aggregator, rounds: int, lost: Lost = NOBODY
) -> ServerState:
    """The oracle: the same updates through the engine that knows no Flower."""
    rules = Federation({name: each.rank for name, each in clients.items()}, aggregator, SHAPES, seed=3)
    state = ServerState.initial(HEAD)
    for number in range(1, rounds + 1):
        updates = [each.updates[number] for each in clients.values()]
        state = private.closed(rules, state, updates, lost).state
    return state


def played(
    clients: Mapping[str, Trainer], private: PrivateRounds | None = MASKED, rounds: int = 1, **settings: object
) -> tuple[FloristStrategy, MemoryGrid]:
    strategy, grid = between(clients, private, **settings)
    strategy.start(grid, num_rounds=rounds)
    return strategy, grid


# --- the sum


@pytest.mark.parametrize("aggregator", [WHOLE, FFA], ids=["linear", "ffa"])
@pytest.mark.parametrize("private", [MASKED, PrivateRounds(Masks(), clip=0.3)], ids=["64 bits", "clipped"])
@pytest.mark.quick(1)
def test_the_sum_is_that_of_one_process_to_the_last_bit(private: PrivateRounds, aggregator: Aggregator) -> None:
    clients = trainers()
    strategy, _ = played(clients, private, rounds=3, aggregator=aggregator)
    assert [[client.client_id for client in line.clients] for line in strategy.records] == [sorted(RANKS)] * 3
    assert_same_bits(numbers(strategy.state), numbers(in_one_process(private, clients, aggregator, 3)))
    assert [line.privacy for line in strategy.records if line.privacy and line.privacy.masked]


PHASES = {"keys": KEYS, "shares": SHARES, "words": WORDS, "reveal": REVEAL}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("gone", ["a", "ab"], ids=["one", "two"])
def test_clients_may_be_lost_in_any_phase_down_to_the_threshold(phase: str, gone: str) -> None:
    clients, lost = trainers(), frozenset(gone)
    strategy, _ = played(clients, deliver=losing({PHASES[phase]: lost}))
    (line,) = strategy.records
    assert line.aggregated
    summed = {"keys": Lost(after_keys=lost), "shares": Lost(after_keys=lost), "words": Lost(after_shares=lost)}
    expected = in_one_process(MASKED, clients, WHOLE, 1, summed.get(phase, NOBODY))
    assert_same_bits(numbers(strategy.state), numbers(expected))
    # Whose words have arrived is in the sum, although it reveals nothing.
    assert {drop.client_id for drop in line.dropped} == (set() if phase == "reveal" else lost)
    assert {client.client_id for client in line.clients} == (set(RANKS) if phase == "reveal" else set(RANKS) - lost)


@pytest.mark.parametrize("phase", PHASES)
def test_below_the_threshold_a_round_fails_closed_and_says_how_many_are_missing(phase: str) -> None:
    strategy, grid = played(trainers(), deliver=losing({PHASES[phase]: frozenset("abc")}))
    (line,) = strategy.records
    assert not line.aggregated
    assert line.clients == ()
    assert line.privacy is not None
    assert line.privacy.failed is not None
    assert "expected 3" in line.privacy.failed
    assert "1 too few" in line.privacy.failed
    assert strategy.state.round_number == 1
    assert not strategy.state.global_adapter
    # Nothing is asked any more that could open what has arrived.
    later = [*PHASES.values()][list(PHASES).index(phase) + 1 :]
    assert not [kind for kind in later if grid.nodes_of(kind)]
    grid.deliver = lambda _, reply: [reply]
    strategy.start(grid, num_rounds=2)
    assert strategy.records[1].aggregated


def test_a_node_that_goes_and_one_that_fails_are_out_of_the_round() -> None:
    clients = trainers()
    strategy, grid = between(clients)

    def deliver(message: Message, reply: Message) -> list[Message]:
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        if (node, kind) == (NODES["a"], SHARES):
            return [unavailable(message)]
        if (node, kind) == (NODES["b"], KEYS):
            grid.forget(node)  # between two phases
        return [reply, reply]

    grid.deliver = deliver
    strategy.start(grid, num_rounds=1)
    (line,) = strategy.records
    assert {drop.client_id: drop.reason for drop in line.dropped} == {
        "a": "Node Unavailable",
        "b": "RosterError: expected to have published keys in this round, and this client has kept none: it was "
        "started anew, or has taken no part; it takes part in the next round",
    }
    assert [client.client_id for client in line.clients] == ["c", "d", "e"]
    grid.deliver = lambda _, reply: [reply]
    strategy.start(grid, num_rounds=2)
    assert len(strategy.records[1].clients) == 5


@pytest.mark.slow
def test_a_part_of_the_clients_is_asked_and_drawn_in_secret() -> None:
    clients = trainers({f"{name}{k}": 2 for name in "abc" for k in range(4)} | {"z": 3})
    for name in clients:
        NODES.setdefault(name, 100 + len(NODES))
    strategy, _ = played(clients, rounds=6, fraction=0.4)
    drawn = [tuple(client.client_id for client in line.clients) for line in strategy.records]
    assert {len(each) for each in drawn} == {6}
    rules = Federation({name: each.rank for name, each in clients.items()}, WHOLE, SHAPES, seed=3, fraction=0.4)
    assert drawn != [rules.participants(number) for number in range(1, 7)]


@pytest.mark.slow
def test_clients_that_leave_for_good_cost_rounds_and_not_the_server() -> None:
    strategy, grid = played(trainers(), PrivateRounds(Masks(threshold=4)), min_clients=2)
    grid.absent = {NODES["a"], NODES["b"], NODES["c"]}
    strategy.start(grid, num_rounds=6)
    reasons = [line.privacy.failed for line in strategy.records if line.privacy is not None]
    assert reasons[0] is None
    assert all(reason is not None for reason in reasons[1:])
    assert "privacy.threshold = 4" in str(reasons[-1])
    grid.absent = set()
    strategy.start(grid, num_rounds=7)
    assert strategy.records[-1].aggregated


# --- what the server gets to see


def rows_of(content: RecordDict) -> Mapping[str, Tensor]:
    return {
        name: tensor
        for arrays in content.array_records.values()
        for name, tensor in (arrays_to_tensors(arrays) if arrays else {}).items()
    }


def test_a_clients_messages_tell_neither_loss_nor_count_nor_norm() -> None:
    seen: list[tuple[str, RecordDict]] = []

    def deliver(message: Message, reply: Message) -> list[Message]:
        seen.append((message.metadata.message_type, reply.content))
        return [reply]

    played(trainers(), deliver=deliver)
    told = {kind: set(content.config_records["florist"]) for kind, content in seen if kind != "query.saved_parameters"}
    assert told == {
        HELLO: {
            "kind", "protocol", "client_id", "rank", "held_out", "base", "modules", "out_features", "in_features",
            "saved_parameters", "holds", "sha256",
        },
        KEYS: {"kind", "client_id", "round_number", "base", "holds", "words", "sha256"},
        SHARES: {"kind", "roster", "sha256"},
        WORDS: {"kind", "roster", "sha256"},
        REVEAL: {"kind", "roster", "sha256"},
    }  # fmt: skip
    for kind, content in seen:
        assert not content.metric_records
        if kind == HELLO:
            assert content.config_records["florist"]["held_out"] == 0
        if kind in {KEYS, SHARES, REVEAL}:
            assert {tensor.dtype for tensor in rows_of(content).values()} == {torch.uint8}


@pytest.mark.slow
def test_what_arrives_is_uniform_and_never_twice_the_same() -> None:
    words: list[np.ndarray] = []

    def deliver(message: Message, reply: Message) -> list[Message]:
        if message.metadata.message_type == WORDS:
            words.append(rows_of(reply.content)["words"].numpy().view(np.uint64))
        return [reply]

    clients = {name: replace(each, size=0.0) for name, each in trainers().items()}
    played(clients, rounds=8, deliver=deliver)
    every = np.concatenate(words)
    # Of the same update of zeros. With 255 degrees of freedom, 1 in 10^6 of uniform bytes is above 366.
    for bits in (every & np.uint64(255), every >> np.uint64(56)):
        counts = np.bincount(bits.astype(np.int64), minlength=256)
        expected = counts.sum() / 256
        assert counts.sum() > 4000
        assert float(((counts - expected) ** 2 / expected).sum()) < 366
    assert len(np.unique(every)) == len(every)


def test_the_record_does_not_tell_what_clients_have(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", "linear")
    played(trainers(), journal=journal)
    (line,) = journal.directory.records()
    for client in line.clients:
        assert client.num_examples is None
        assert client.update_norm is None
        assert client.loss != client.loss
        assert client.upload_bytes > 0
        assert client.download_bytes > 0
    assert '"num_examples": null' in (tmp_path / "run" / "rounds.jsonl").read_text()


# --- what clients demand


def test_a_client_that_demands_masks_does_not_train_in_the_clear_and_tells_no_metrics() -> None:
    clients = trainers()
    demands = {"a": Demands(masked=True)}
    strategy, grid = between(clients, None, demands=demands, evaluate_on_clients=True, min_clients=4)
    strategy.start(grid, num_rounds=1)
    assert "a" not in {client.client_id for client in strategy.records[0].clients}
    assert clients["a"].updates == {}
    (reason,) = strategy._members.roster.refused.values()
    assert "takes part in masked rounds alone; set privacy.secure_aggregation = true at the server" in reason
    # And where a server asks it all the same.
    for kind in (TRAIN, EVALUATE):
        sent = next(message for message in grid.sent if message.metadata.message_type == kind)
        again = Message(sent.content, NODES["a"], kind)
        (answer,) = grid.send_and_receive([again])
        assert "privacy.secure_aggregation demands" in answer.error.reason
    assert clients["a"].updates == {}


def test_the_instruction_of_a_masked_round_is_not_followed_in_the_clear_whatever_a_client_demands() -> None:
    clients = trainers()
    _, grid = played(clients, demands={})
    sent = phase_messages(grid, "a")
    clients["a"].updates.clear()
    assert "expected no terms of a masked round" in again(grid, Message(sent[KEYS].content, NODES["a"], TRAIN))
    assert clients["a"].updates == {}
    _, grid = played(clients, None, demands={})
    plain = phase_messages(grid, "a")[TRAIN].content
    clients["a"].updates.clear()
    assert "got an instruction without; nothing is trained" in again(grid, Message(plain, NODES["a"], KEYS))
    assert clients["a"].updates == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("demands", "telling"),
    [
        (Demands(masked=True, threshold=4), "expected a threshold of 4 or more"),
        (Demands(masked=True, threshold=0.75), "expected a threshold of 4 or more"),
        (Demands(masked=True, smallest_group=3), "expected groups of 3 or more"),
        (Demands(masked=True, clip=0.2), "expected a clip of at most 0.2, which this client's privacy.clip demands"),
    ],
)
def test_a_client_takes_part_with_no_less_than_it_demands(demands: Demands, telling: str) -> None:
    clients = trainers()
    private = PrivateRounds(Masks(), clip=0.3)
    strategy, _ = played(clients, private, demands={**dict.fromkeys("bcde", Demands(masked=True)), "a": demands})
    (line,) = strategy.records
    (drop,) = line.dropped
    assert drop.client_id == "a"
    assert telling in drop.reason
    assert clients["a"].updates == {}
    fitting = Demands(masked=True, threshold=3, smallest_group=2, clip=0.3)
    strategy, _ = played(trainers(), private, demands=dict.fromkeys("abcde", fitting))
    assert strategy.records[0].dropped == ()


def test_a_client_whose_change_is_too_large_stays_out_and_says_so() -> None:
    clients = trainers()
    clients["c"].size = 50.0
    strategy, _ = played(clients)
    (drop,) = strategy.records[0].dropped
    assert drop.client_id == "c"
    assert "privacy.largest" in drop.reason


# --- what clients refuse


def phase_messages(grid: MemoryGrid, client: str) -> Mapping[str, Message]:
    sent = [each for each in grid.sent if each.metadata.dst_node_id == NODES[client]]
    return {each.metadata.message_type: each for each in sent}


def again(grid: MemoryGrid, message: Message, content: RecordDict | None = None) -> str:
    """Why a client does not answer a message that it is sent once more."""
    kind, node = message.metadata.message_type, message.metadata.dst_node_id
    (reply,) = grid.send_and_receive([Message(content or message.content, node, kind)])
    return reply.error.reason.splitlines()[-1] if reply.has_error() else ""


def test_a_client_answers_each_phase_once_and_a_round_number_once() -> None:
    _, grid = played(trainers())
    sent = phase_messages(grid, "a")
    assert "after round 1, in which it has sent its words, got round 1" in again(grid, sent[KEYS])
    assert "it shares nothing a second time" in again(grid, sent[SHARES])
    assert "after round 1, in which it has sent its words" in again(grid, sent[WORDS])
    assert "it reveals nothing a second time" in again(grid, sent[REVEAL])


def stopped_before(kind: str) -> tuple[MemoryGrid, Mapping[str, Message]]:
    """A round of which no client has seen a phase."""
    strategy, grid = between(trainers())
    earlier = [*PHASES.values()][: [*PHASES.values()].index(kind)]
    grid.deliver = losing({earlier[-1]: frozenset("abcde")})
    strategy.start(grid, num_rounds=1)
    grid.deliver = lambda _, reply: [reply]
    return grid, phase_messages(grid, "a")


def test_a_round_begins_anew_with_new_secrets_as_long_as_no_words_were_sent() -> None:
    grid, sent = stopped_before(WORDS)
    before = dict(grid.contexts[NODES["a"]].state.config_records["florist.private_turn"])
    assert again(grid, sent[KEYS]) == ""
    after = grid.contexts[NODES["a"]].state.config_records["florist.private_turn"]
    assert after["secrets"] != before["secrets"]
    assert "roster.run" not in after
    assert "its own keys in the roster" in again(grid, sent[SHARES])  # which is that of the keys of before


def test_a_second_roster_and_a_second_sealing_are_refused() -> None:
    grid, sent = stopped_before(WORDS)
    assert "expected to share its secrets once in round 1" in again(grid, sent[SHARES])
    changed = sent[SHARES].content
    head = dict(changed.config_records["florist"])
    head["threshold"] = 4
    changed["florist"] = ConfigRecord(head)
    assert "told before, got another" in again(grid, sent[SHARES], changed)


@pytest.mark.parametrize(
    ("field", "value", "telling"),
    [
        ("threshold", 2, "expected a threshold above half of the 5 clients"),
        ("round_number", 2, "expected the roster of round 1, got that of round 2"),
        ("smallest_group", 1, "expected groups of 2 clients or more"),
        ("names", ["b", "c", "d", "e", "f"], "its own keys in the roster"),
        ("names", ["a", "a", "c", "d", "e"], "each once"),
    ],
)
def test_a_client_refuses_a_roster_that_is_not_safe(field: str, value: object, telling: str) -> None:
    grid, sent = stopped_before(SHARES)
    _, other = played(trainers())
    content = phase_messages(other, "a")[SHARES].content
    assert "its own keys in the roster" in again(grid, Message(content, NODES["a"], SHARES))
    assert set(sent) == {HELLO, KEYS} | ({"query.saved_parameters"} & set(sent))
    head = dict(content.config_records["florist"])
    head[field] = value  # type: ignore[assignment]
    content["florist"] = ConfigRecord(head)
    assert telling in again(grid, Message(content, NODES["a"], SHARES))


def test_messages_of_another_roster_are_not_answered() -> None:
    _, other = played(trainers())
    theirs = phase_messages(other, "a")
    for kind in (WORDS, REVEAL):
        grid, _ = stopped_before(kind)
        reason = again(grid, Message(theirs[kind].content, NODES["a"], kind))
        assert "got one of another roster; it is not answered" in reason


def test_secrets_leave_the_memory_once_they_were_revealed_and_words_once_they_were_sent() -> None:
    grid, _ = stopped_before(REVEAL)
    state = grid.contexts[NODES["a"]].state
    assert len(str(state.config_records["florist.private_turn"]["secrets"])) > 32
    assert not state.array_records["florist.private_words"]
    assert state.config_records["florist.private_sent"]["round"] == 1
    _, grid = played(trainers())
    state = grid.contexts[NODES["a"]].state
    assert state.config_records["florist.private_turn"]["secrets"] == b""
    assert "received" not in state.config_records["florist.private_turn"]


# --- hostile clients


def with_rows(change: Callable[[Tensor], Tensor], name: str = "rows") -> Callable[[Message], list[Message]]:
    def changed(reply: Message) -> list[Message]:
        content = reply.content
        content["private"] = tensors_to_arrays({name: change(rows_of(content)[name])})
        head = dict(content.config_records["florist"])
        head["sha256"] = digest([content.array_records["private"]])
        content["florist"] = ConfigRecord(head)
        return [reply]

    return changed


def said(**fields: object) -> Callable[[Message], list[Message]]:
    def changed(reply: Message) -> list[Message]:
        head = {**reply.content.config_records["florist"], **fields}
        reply.content["florist"] = ConfigRecord(head)  # type: ignore[arg-type]
        return [reply]

    return changed


@pytest.mark.parametrize(
    ("kind", "change", "telling"),
    [
        (KEYS, with_rows(lambda rows: rows[:2]), "expected rows of the shape (3, 32)"),
        (KEYS, with_rows(lambda rows: 0 * rows), "two keys that differ"),
        (KEYS, with_rows(lambda rows: torch.cat([0 * rows[:1], rows[1:]])), "a secret that everybody knows"),
        (KEYS, with_rows(lambda rows: torch.zeros(10**6, dtype=torch.uint8)), "bytes of tensors"),
        (KEYS, said(words=7), "words, by the terms of the round, got 7"),
        (KEYS, said(round_number=9), "expected keys for round 1, got some for 9"),
        (KEYS, said(client_id="b"), "expected a reply of a, got one that says b"),
        (KEYS, said(base="x"), "expected the base the base, as introduced, got x"),
        (KEYS, said(holds=4), "expected a reply from the global adapter of round 0, got one from 4"),
        (KEYS, said(kind="Report"), "expected the kind PublishedKeys, got Report"),
        (SHARES, with_rows(lambda rows: rows[:-1]), "expected rows of the shape (5, 82)"),
        (SHARES, said(roster="0" * 64), "another roster"),
        (SHARES, said(roster="x"), "SealedShares.roster"),
        (WORDS, with_rows(lambda words: words[:-1], "words"), "expected words of the shape"),
        (WORDS, with_rows(lambda words: words.double(), "words"), "in torch.int64, got"),
        (WORDS, with_rows(lambda words: torch.cat([words] * 1000), "words"), "bytes of tensors"),
        (WORDS, lambda reply: [Message(RecordDict({"x": ConfigRecord({"a": 1})}), reply_to=reply)], "no reply within"),
        (REVEAL, with_rows(lambda rows: rows[:, :-1]), ""),
        (REVEAL, said(kind="MaskedWords"), ""),
    ],
)  # fmt: skip
def test_a_hostile_reply_drops_its_client_and_no_other(
    kind: str, change: Callable[[Message], list[Message]], telling: str
) -> None:
    strategy, _ = played(trainers(), deliver=answering("a", kind, change))
    (line,) = strategy.records
    assert line.aggregated
    if kind == REVEAL:
        assert line.dropped == ()
        return
    (drop,) = line.dropped
    assert drop.client_id == "a"
    assert telling in drop.reason
    assert {client.client_id for client in line.clients} == set("bcde")


def test_keys_of_another_client_are_dropped() -> None:
    first: list[Tensor] = []

    def deliver(message: Message, reply: Message) -> list[Message]:
        if message.metadata.message_type == KEYS and message.metadata.dst_node_id == NODES["a"]:
            first.append(rows_of(reply.content)["rows"])
        if message.metadata.message_type == KEYS and message.metadata.dst_node_id == NODES["b"]:
            return with_rows(lambda rows: first[0])(reply)
        return [reply]

    strategy, _ = played(trainers(), deliver=deliver)
    (drop,) = strategy.records[0].dropped
    assert (drop.client_id, drop.reason) == ("b", "expected keys of its own, got those of another client")


@pytest.mark.parametrize("kind", [SHARES, REVEAL])
def test_a_wrong_share_costs_the_round_and_not_the_server(kind: str) -> None:
    flipped = with_rows(lambda rows: rows ^ torch.tensor(1, dtype=torch.uint8))
    strategy, grid = played(trainers(), deliver=answering("a", kind, flipped))
    (line,) = strategy.records
    assert not line.aggregated
    assert line.privacy is not None
    assert line.privacy.failed is not None
    grid.deliver = lambda _, reply: [reply]
    strategy.start(grid, num_rounds=2)
    assert strategy.records[1].aggregated


# --- a server that is stopped


class StoppedError(Exception):
    """As when the process of the server is killed."""


def stop_at(kind: str, round_number: int) -> Callable[[Message, Message], list[Message]]:
    def deliver(message: Message, reply: Message) -> list[Message]:
        if message.metadata.message_type == kind and message.metadata.group_id == str(round_number):
            raise StoppedError
        return [reply]

    return deliver


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("same_memory", [True, False], ids=["same run of Flower", "another run of Flower"])
@pytest.mark.quick(3)
def test_a_server_that_is_stopped_asks_for_words_once_a_round_number(
    phase: str, same_memory: bool, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "run", "linear")
    clients = trainers()
    strategy, grid = between(clients, deliver=stop_at(PHASES[phase], 2), journal=journal)
    with pytest.raises(StoppedError):
        strategy.start(grid, num_rounds=3)
    grid.deliver = lambda _, reply: [reply]
    if not same_memory:
        for node in NODES.values():
            if node in grid.contexts:
                grid.forget(node)
    resumed, _ = between(clients, journal=journal)
    sent_before = len(grid.sent)
    resumed.start(grid, num_rounds=3)
    asked = [each for each in grid.sent[sent_before:] if each.metadata.message_type == WORDS]
    records = resumed.records
    assert [line.round for line in records] == [1, 2, 3]
    if phase in {"keys", "shares"}:
        assert [line.aggregated for line in records] == [True, True, True]
    else:
        assert [line.aggregated for line in records] == [True, False, True]
        assert "asked for masked words, of which clients send none twice" in str(records[1].privacy)
        assert {each.metadata.group_id for each in asked} == {"3"}
    for line in records:
        assert not line.dropped
    in_rounds = [each.metadata.group_id for each in grid.sent if each.metadata.message_type == WORDS]
    assert all(a <= b for a, b in pairwise(in_rounds))
    assert len(journal.directory.records()) == 3


def test_a_run_is_resumed_with_the_protection_that_it_was_begun_with(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", "linear")
    played(trainers(), journal=journal)
    for other in (None, replace(MASKED, clip=1.0)):
        demands = None if other else {}
        with pytest.raises(ConfigurationError, match="private = "):
            played(trainers(), other, rounds=2, journal=journal, demands=demands)
    strategy, _ = played(trainers(), rounds=2, journal=journal)
    assert len(strategy.records) == 2


# --- what does not go together


@pytest.mark.parametrize(
    ("settings", "telling"),
    [
        ({"aggregator": FedIt()}, "clients train B alone"),
        ({"evaluate_on_clients": True}, "flower.evaluation = 'clients'"),
    ],
)
def test_what_protects_nothing_is_refused(settings: Mapping[str, object], telling: str) -> None:
    with pytest.raises(ConfigurationError, match=telling):
        between(trainers(), **settings)


# --- noise


def noisy(multiplier: float, *, clients: int = 5, asked: int = 5, **others: object) -> Noise:
    pytest.importorskip("dp_accounting")
    sampling = others.pop("sampling", Sampling.FIXED)
    assert isinstance(sampling, Sampling)
    return Noise(Accountant(multiplier, 1e-3, clients, asked, sampling), **others)


IN_THE_CLEAR = dict.fromkeys(RANKS, Demands())


@pytest.mark.parametrize("masks", [None, Masks(bits=64)], ids=["clear", "masked"])
@pytest.mark.quick(1)
def test_noise_is_added_to_the_same_sum_and_is_drawn_in_secret(masks: Masks | None) -> None:
    demands = IN_THE_CLEAR if masks is None else None
    found: list[Mapping[str, Tensor]] = []
    for multiplier in (2.0, 2.0, 1e-12):
        clients = trainers()
        silent = replace(noisy(1.0), accountant=noisy(multiplier).accountant)
        strategy, _ = played(clients, PrivateRounds(masks, clip=0.3, noise=silent), demands=demands)
        found.append(strategy.state.saved_parameters)
        quiet = PrivateRounds(masks, clip=0.3, noise=replace(noisy(1.0), accountant=noisy(1e-12).accountant))
        expected = in_one_process(quiet, clients, WHOLE, 1).saved_parameters["head.weight"]
        (line,) = strategy.records
        assert line.privacy is not None
        assert line.privacy.deviation == pytest.approx(multiplier * 0.3 / 5)
        off = found[-1]["head.weight"] - expected
        if multiplier == 2.0:
            assert line.epsilon == noisy(2.0).accountant.epsilon(1)
            assert 0.4 < float(off.square().mean().sqrt()) / line.privacy.deviation < 1.8
        else:
            assert float(off.abs().max()) < 1e-6
    assert not torch.allclose(found[0]["head.weight"], found[1]["head.weight"], atol=1e-4)


def test_the_rounds_end_before_epsilon_is_exceeded_and_a_resumed_run_has_its_noise(tmp_path: Path) -> None:
    journal, accountant = Journal(tmp_path / "run", "linear"), noisy(4.0).accountant
    private = PrivateRounds(Masks(), clip=0.3, noise=Noise(accountant, epsilon=accountant.epsilon(2) + 1e-6))
    played(trainers(), private, rounds=1, journal=journal)
    with pytest.raises(ConfigurationError, match=r"private = .*5 of 9 clients"):
        played(trainers(), replace(private, noise=noisy(4.0, clients=9)), rounds=9, journal=journal)
    strategy, _ = played(trainers(), private, rounds=9, journal=journal)
    assert [line.epsilon for line in strategy.records] == [accountant.epsilon(1), accountant.epsilon(2)]
    assert [line.privacy.spent for line in strategy.records if line.privacy] == [False, True]


def test_the_clip_follows_the_norms_that_clients_tell_by_a_bit() -> None:
    rule = AdaptiveClip(quantile=0.5, count_noise=1e-6)
    loud = replace(noisy(1e-9), adaptive=rule)
    strategy, grid = played(trainers(), PrivateRounds(Masks(), clip=50.0, noise=loud), rounds=2)
    clips = [line.privacy.clip for line in strategy.records if line.privacy]
    assert clips == [50.0, pytest.approx(50.0 * np.exp(-0.2 * 0.5))]  # all norms are below
    told = [
        each.content.config_records["florist"]["privacy.clip"]
        for each in grid.sent
        if each.metadata.message_type == KEYS
    ]
    assert sorted(set(map(float, map(str, told)))) == sorted(map(float, map(str, clips)))


@pytest.mark.slow
def test_epsilon_is_of_the_clients_that_it_is_counted_for_however_many_come(tmp_path: Path) -> None:
    clients = trainers({f"n{k}": 2 for k in range(9)})
    for name in clients:
        NODES.setdefault(name, 200 + len(NODES))
    counted = noisy(1.0, clients=6, asked=3)
    private = PrivateRounds(clip=0.3, noise=counted)
    strategy, grid = played(clients, private, rounds=4, fraction=0.5, demands={})
    assert [len(line.clients) for line in strategy.records] == [3] * 4
    # Three of the six places: where only two are left, a round has about one of them, and nobody is drawn more often.
    grid.absent = {NODES[f"n{k}"] for k in range(2, 9)}
    server = strategy._rounds.server
    rules = server.rules(Federation({"n0": 2, "n1": 2}, WHOLE, SHAPES, seed=3))
    assert rules.clients_per_round == 3
    drawn = [server.participants(rules, number, ["n0", "n1"]) for number in range(400)]
    assert sum("n0" in each for each in drawn) / 400 == pytest.approx(0.5, abs=0.1)


def test_draws_by_themselves_have_the_probability_that_is_counted() -> None:
    counted = noisy(1.0, clients=20, asked=5, sampling=Sampling.POISSON)
    private = PrivateRounds(clip=0.3, noise=counted, secret=True)
    rules = Federation({f"client_{k:02}": 2 for k in range(20)}, WHOLE, SHAPES, seed=3, fraction=0.25)
    drawn = [private.participants(rules, 1) for _ in range(400)]
    assert sum(map(len, drawn)) / 400 == pytest.approx(5, abs=0.5)
    assert len(set(drawn)) > 100


def test_an_update_that_does_not_fit_is_refused_before_noise() -> None:
    private = PrivateRounds(clip=0.3, noise=noisy(1.0))
    broken = with_head(float("nan"))
    strategy, _ = played(trainers(), private, demands=IN_THE_CLEAR, deliver=answering("b", TRAIN, broken))
    (drop,) = strategy.records[0].dropped
    assert drop.client_id == "b"
    assert "NaN" in drop.reason


def with_head(value: float) -> Callable[[Message], list[Message]]:
    def changed(reply: Message) -> list[Message]:
        content = reply.content
        content["saved_parameters"] = tensors_to_arrays({"head.weight": torch.full((3, 4), value)})
        head = dict(content.config_records["florist"])
        order = ("packed", "adapter", "saved_parameters")
        head["sha256"] = digest(content.array_records[name] for name in order)
        content["florist"] = ConfigRecord(head)
        return [reply]

    return changed
