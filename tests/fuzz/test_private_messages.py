"""Hostile messages in the phases of a masked round: to the parsers of both sides, and to a client."""

# ruff: noqa: S311  # cases are drawn, and no secrets

import logging
import random
from collections.abc import Callable, Iterator, Mapping

import jaxtyping
import pytest
from flwr.app import Message, RecordDict

from florist.flower import private_protocol
from florist.flower.messages import KEYS, REVEAL, SHARES, WORDS
from florist.flower.private_memory import PrivateMemory
from florist.privacy.roster import Roster
from tests.flower.grids import MemoryGrid
from tests.flower.private_participants import NODES, between, losing, trainers
from tests.fuzz.hostile_messages import broken, refused

REFUSALS = {"InvalidUpdateError", "ContradictionError", "RosterError", "BelowThresholdError", "BrokenSharesError"}
REFUSALS |= {"ConfigurationError", "UnknownCodecError", "InvalidAdapterError", "NonFiniteUpdateError"}
PHASES = (KEYS, SHARES, WORDS, REVEAL)


@pytest.fixture(autouse=True)
def _as_a_user_runs_it() -> Iterator[None]:
    jaxtyping.config.update("jaxtyping_disable", True)
    level = logging.getLogger("flwr").level
    logging.getLogger("flwr").setLevel(logging.ERROR)
    yield
    logging.getLogger("flwr").setLevel(level)
    jaxtyping.config.update("jaxtyping_disable", False)


def a_round() -> tuple[MemoryGrid, Mapping[str, RecordDict], Mapping[str, RecordDict], Roster]:
    """A round, and what client a was sent and answered in each phase."""
    replies: dict[str, RecordDict] = {}

    def deliver(message: Message, reply: Message) -> list[Message]:
        if message.metadata.dst_node_id == NODES["a"]:
            replies[message.metadata.message_type] = reply.content
        return [reply]

    strategy, grid = between(trainers(), deliver=deliver)
    strategy.start(grid, num_rounds=1)
    questions = {
        each.metadata.message_type: each.content for each in grid.sent if each.metadata.dst_node_id == NODES["a"]
    }
    roster = PrivateMemory.load(grid.contexts[NODES["a"]].state).in_turn().roster
    assert roster is not None
    return grid, questions, replies, roster


def parsers() -> list[tuple[RecordDict, Callable[[RecordDict], object]]]:
    """Messages of all phases, with what reads them."""
    _, questions, replies, roster = a_round()
    return [
        (replies[KEYS], private_protocol.read_keys),
        (questions[SHARES], private_protocol.read_roster),
        (replies[SHARES], lambda content: private_protocol.read_sealed(content, roster)),
        (questions[WORDS], lambda content: private_protocol.read_received(content, roster)),
        (replies[WORDS], lambda content: private_protocol.read_words(content, roster, "a")),
        (questions[REVEAL], lambda content: private_protocol.read_survivors(content, roster)),
        (replies[REVEAL], lambda content: private_protocol.read_revealed(content, roster, set(roster.members), ())),
    ]


def test_what_is_broken_is_read_or_refused() -> None:
    assert refused(parsers(), range(210)) > 50


@pytest.mark.slow
def test_thousands_of_broken_messages_are_read_or_refused() -> None:
    assert refused(parsers(), range(1_000, 5_000)) > 1_500


@pytest.mark.parametrize("stopped_after", PHASES)
def test_a_client_refuses_what_is_broken_and_sends_its_words_once(stopped_after: str) -> None:
    """Whatever it is sent in whatever phase, a client answers or says why not."""
    strategy, grid = between(trainers(), deliver=losing({stopped_after: frozenset("abcde")}))
    strategy.start(grid, num_rounds=1)
    grid.deliver = lambda _, reply: [reply]
    _, questions, _, _ = a_round()
    own = {each.metadata.message_type: each.content for each in grid.sent if each.metadata.dst_node_id == NODES["a"]}
    answered = {kind: int(kind in own) for kind in PHASES}
    for seed in range(40):
        rng = random.Random(seed)
        kind = rng.choice(PHASES)
        content = {**questions, **own}[kind]
        (reply,) = grid.send_and_receive([Message(broken(content, rng) if seed % 4 else content, NODES["a"], kind)])
        answered[kind] += not reply.has_error()
        if reply.has_error():
            last = reply.error.reason.splitlines()[-1]
            assert last.partition(":")[0] in REFUSALS, last
    assert answered[WORDS] <= 1
    assert answered[REVEAL] <= 1
