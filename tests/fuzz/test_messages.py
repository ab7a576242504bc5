"""Hostile messages: to the parsers, to a server in a round, and to a client.

Refused means that the client is dropped with a readable reason, and that the round ends with the bits that it has when
the client does not answer. Accepted means that the broadcast is the dense sum. Nothing else is raised.
"""

# ruff: noqa: S311  # cases are drawn, and no secrets

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import jaxtyping
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from torch import Tensor

from florist.compression.codecs import codec_named
from florist.compression.feedback import Compression, Feedback
from florist.compression.packed import PackedAdapter
from florist.errors import FloristError
from florist.factors import AdapterState
from florist.federation.communication import Communication
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.flower import protocol
from florist.flower.exchange import Exchange
from florist.flower.messages import (
    PROTOCOL,
    TRAIN,
    Assignment,
    Evaluation,
    Instruction,
    Introduction,
    OutOfStep,
    Report,
    Upload,
)
from florist.flower.open_round import OpenRound
from florist.flower.upload_terms import UploadTerms
from florist.ranks import EnergyThreshold
from florist.rounds import NO_ADAPTER, Trained
from tests.builders import SHAPES, adapter, dense_sum, relative_error
from tests.flower.grids import as_in_a_process, identified
from tests.flower.participants import Light, app_of, between
from tests.fuzz.hostile_messages import broken, copied, refused, with_fields
from tests.fuzz.oracle import refused_or_taken, require_readable

PACKED = Communication(Compression(codec_named("int4"), feedback=Feedback()))
HEAD = {"head": torch.ones(3)}
RANKS = {"a": 2, "b": 3, "c": 2}


@pytest.fixture(autouse=True)
def _as_a_user_runs_it() -> Iterator[None]:
    """What jaxtyping would catch reaches florist's own checks; and Flower's own warnings of the mutator are silent."""
    jaxtyping.config.update("jaxtyping_disable", True)
    as_in_a_process()
    level = logging.getLogger("flwr").level
    logging.getLogger("flwr").setLevel(logging.ERROR)
    yield
    logging.getLogger("flwr").setLevel(level)
    jaxtyping.config.update("jaxtyping_disable", False)


# --- the parsers


def introduction() -> Introduction:
    m, n = zip(*SHAPES.values(), strict=True)
    return Introduction(PROTOCOL, "berlin", 4, 10, 3, "base", list(SHAPES), list(m), list(n), ["head"], -1)


def instruction(assignment: Assignment, *, packed: bool) -> Instruction:
    added, own = adapter(2, 1, dtype=torch.float32), adapter(2, 2, dtype=torch.float32)
    directions = {"layers.1.up": torch.ones(1, 9)}
    if packed:
        codec = codec_named("int8")
        sent = PackedAdapter.of(added, codec), PackedAdapter.of(own, codec)
        return Instruction(assignment, NO_ADAPTER, NO_ADAPTER, directions, HEAD, sent, PackedAdapter.of(own, codec))
    return Instruction(assignment, added, own, directions, HEAD)


def assignment(communication: Communication = PACKED) -> Assignment:
    terms = UploadTerms.of(communication)
    return Assignment(1, -1, 0, False, 5, 6, 8, Trained.FACTORS.value, "warm", 0, terms)  # in order


def uploads() -> list[Upload]:
    report, held = Report("berlin", 1, 10, "base", 0, 0.5, 1.5, 0.25, ""), adapter(2, 1, dtype=torch.float32)
    return [
        Upload(report, held, HEAD),
        *(Upload(report, NO_ADAPTER, HEAD, PackedAdapter.of(held, codec_named(name))) for name in ("int4", "float16")),
    ]


def no_rows(module: str, rank: int) -> Tensor:
    return torch.zeros(40, SHAPES[module][1])[:rank]


def parsers() -> list[tuple[RecordDict, Callable[[RecordDict], object]]]:
    """Messages of all kinds, with what reads them."""

    def reply(content: RecordDict) -> object:
        return protocol.read_reply(content, no_rows)

    def told(content: RecordDict) -> object:
        return protocol.read_instruction(content, lambda _: no_rows)

    replies = [*(protocol.write_reply(each) for each in uploads()), protocol.write_reply(uploads()[0], Trained.B)]
    replies += [protocol.write_reply(Evaluation("berlin", 1, 3, ["loss"], [0.5]))]
    replies += [protocol.write_reply(OutOfStep("berlin", 0))]
    questions = [protocol.write_instruction(instruction(assignment(), packed=packed)) for packed in (False, True)]
    return [
        *((content, reply) for content in replies),
        *((content, told) for content in questions),
        (protocol.write_introduction(introduction()), protocol.read_introduction),
        (protocol.write_saved_parameters(HEAD), protocol.read_saved_parameters),
    ]


def test_what_is_broken_is_read_or_refused() -> None:
    assert refused(parsers(), range(150)) > 30


@pytest.mark.slow
def test_thousands_of_broken_messages_are_read_or_refused() -> None:
    assert refused(parsers(), range(1_000, 9_000)) > 3_000


# --- a server in a round


class Server:
    """A round with three clients, of which one is hostile. It is played anew for each message, from the same state.

    Attributes:
        communication: how updates travel.
    """

    def __init__(self, communication: Communication) -> None:
        from florist.aggregation import Florist  # the method; its certificate is not what is tested here

        self.rules = Federation(RANKS, Florist(EnergyThreshold(1.0)), SHAPES, 0, communication=communication)
        self.state = ServerState.initial()
        clients = {node: Light(name, RANKS[name], node - 6) for node, name in enumerate("abc", 7)}
        self.app, self.clients = app_of(clients), clients
        strategy, grid = between(clients, communication=communication)
        strategy.start(grid, num_rounds=0)
        self.introductions = dict(strategy._members.roster.members)  # as the clients introduced themselves
        self.replies = {name: self.reply(node, 1) for node, name in enumerate("abc", 7)}
        # The strange but sound: of another round, of another client, and of another kind.
        self.others = [self.replies["b"], self.replies["c"], self.reply(7, 2)]
        self.others += [protocol.write_reply(OutOfStep("a", 0)), protocol.write_reply(Evaluation("a", 0, 0, [], []))]
        self.others += [with_fields(self.replies["a"], client_id="b"), with_fields(self.replies["a"], num_examples=9)]
        self.without, _ = self.closed({name: each for name, each in self.replies.items() if name != "a"})

    def exchange(self, number: int = 1) -> Exchange:
        return Exchange(self.rules, replace(self.state, round_number=number - 1), self.introductions, None)

    def reply(self, node: int, number: int) -> RecordDict:
        """What an honest client answers."""
        content, _ = self.exchange(number).to_train(self.clients[node].client_id)
        message = identified(Message(content, node, TRAIN), "1")
        return self.app(message, Context(1, node, {}, RecordDict(), {})).content

    def closed(self, replies: Mapping[str, RecordDict]) -> tuple[object, OpenRound]:
        """The round with these replies."""
        underway = OpenRound(self.exchange(), 1, dict(zip("abc", (7, 8, 9), strict=True)), 1.0)
        sent = underway.messages(list(RANKS), TRAIN)
        messages = {name: identified(message, name) for name, message in zip(RANKS, sent, strict=True)}
        arrived = [Message(each, reply_to=messages[name]) for name, each in replies.items()]
        answers = underway.answers(Nobody(), arrived)  # pyright: ignore[reportArgumentType]  # asks clients again
        updates = [Exchange.update(each) for some in answers.values() for each in some if isinstance(each, Upload)]
        return self.rules.close_round(self.state, updates), underway

    def play(self, seed: int) -> bool:
        """One hostile reply; whether it counted."""
        rng = random.Random(seed)
        content = copied(rng.choice(self.others)) if rng.random() < 0.1 else broken(self.replies["a"], rng)
        closed, underway = self.closed({**self.replies, "a": content})
        drops = [*underway.dropped, *closed.dropped]
        for drop in drops:
            require_readable(drop.reason)
            assert drop.client_id == "a"
        assert [update.client_id for update in closed.counted][-2:] == ["b", "c"]
        if len(closed.counted) == 2:
            assert drops, "nobody was told"
            assert same_bits(closed.broadcast.shared, self.without.broadcast.shared)
            assert closed.broadcast.certificate == self.without.broadcast.certificate
            return False
        for module in SHAPES:
            found = closed.broadcast.shared
            got = found[module].delta_weight() if module in found else torch.zeros(SHAPES[module])
            assert relative_error(got, dense_sum(closed.counted, module)) < 1e-4, module
        return True


class Nobody:
    """A grid on which no client is reached a second time."""

    def send_and_receive(self, messages: object, *, timeout: float) -> list[Message]:  # as Flower's
        return []


def same_bits(found: AdapterState, expected: AdapterState) -> bool:
    return found.specs == expected.specs and all(
        torch.equal(factor.B, expected[name].B) and torch.equal(factor.A, expected[name].A)
        for name, factor in found.items()
    )


def play_hostile(seeds: range) -> int:
    refused, servers = 0, [Server(Communication()), Server(PACKED)]
    for seed in seeds:
        with refused_or_taken(f"server {seed}"):
            refused += not servers[seed % 2].play(seed)
    return refused


def test_a_hostile_reply_costs_one_update_and_changes_no_bit() -> None:
    assert play_hostile(range(60)) > 10


@pytest.mark.slow
def test_thousands_of_hostile_replies_cost_one_update_and_change_no_bit() -> None:
    assert play_hostile(range(1_000, 2_200)) > 800


@pytest.mark.slow
def test_a_strategy_goes_on_through_a_hundred_hostile_rounds() -> None:
    """The whole server, messages included: whoever answers honestly counts in every round, and the sums are theirs."""
    clients = {node: Light(name, RANKS[name], node - 6) for node, name in enumerate("abc", 7)}
    earlier: list[RecordDict] = []

    def deliver(message: Message, reply: Message) -> list[Message]:
        if message.metadata.dst_node_id != 7 or reply.has_error():
            return [reply]
        rng = random.Random(message.metadata.message_id)
        earlier.append(copied(reply.content))
        content = rng.choice(earlier) if rng.random() < 0.2 else broken(reply.content, rng)
        del earlier[:-20]
        return [Message(content, reply_to=message)] * rng.choice((1, 1, 1, 2))

    strategy, grid = between(clients, deliver=deliver, min_clients=2)
    with refused_or_taken("strategy"):
        strategy.start(grid, num_rounds=0)
    for number in range(1, 101):
        with refused_or_taken(f"strategy, round {number}"):
            strategy.start(grid, num_rounds=number)
            record = strategy.records[-1]
            assert {"b", "c"} <= {client.client_id for client in record.clients}
            for drop in record.dropped:
                require_readable(drop.reason)


# --- a client


def answers_hostile(seeds: range, folder: Path) -> int:
    client = Light("berlin", 2, 10, saved_parameters=HEAD, held_out=3)
    app, refused = app_of({1: client}), 0
    questions = [protocol.write_instruction(instruction(assignment(), packed=packed)) for packed in (False, True)]
    for seed in seeds:
        rng = random.Random(seed)
        kind = rng.choice((TRAIN, TRAIN, "evaluate", "query.hello"))
        content = broken(rng.choice(questions), rng)
        memory = RecordDict()
        message = identified(Message(content, 1, kind), str(seed))
        with refused_or_taken(f"client {seed}"):
            try:
                answer = app(message, Context(1, 1, {}, memory, {}))
            except FloristError:
                refused += 1
                assert not memory, "something was kept of what was refused"
                raise
            if kind == "query.hello":
                assert protocol.read_introduction(answer.content).client_id == "berlin"
            else:
                assert not isinstance(protocol.read_reply(answer.content, no_rows), OutOfStep) or not memory
    assert not list(folder.iterdir())
    return refused


def test_a_client_refuses_a_hostile_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert answers_hostile(range(60), tmp_path) > 5


@pytest.mark.slow
def test_a_client_refuses_hundreds_of_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert answers_hostile(range(1_000, 1_800), tmp_path) > 300
