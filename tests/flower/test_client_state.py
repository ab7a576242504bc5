from collections.abc import Mapping

import pytest
import torch
from flwr.app import RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from florist.aggregation import FedIt, Florist, LinearRounds
from florist.compression.codecs import codec_named
from florist.compression.feedback import Compression, Feedback
from florist.errors import InvalidUpdateError
from florist.factors import AdapterState, LoraFactor
from florist.federation.communication import Communication
from florist.federation.local_init import Aligned, Fresh, LocalInit, LocalStart, Warm
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.flower import messages, protocol
from florist.flower.client_state import ClientState
from florist.flower.exchange import Exchange
from florist.flower.messages import Assignment, Instruction, Introduction
from florist.flower.upload_terms import AS_THEY_ARE
from florist.ranks import EnergyThreshold
from florist.rounds import NO_ADAPTER, Aggregator
from tests.builders import SHAPES, adapter, relative_error, update

NAME, RANK = "x", 2


def rules(
    local_init: LocalInit | None = None,
    aggregator: Aggregator | None = None,
    catch_up_rounds: int = 16,
    communication: Communication | None = None,
) -> Federation:
    return Federation(
        {NAME: RANK, "y": 4},
        aggregator or Florist(EnergyThreshold(1.0)),
        SHAPES,
        0,
        local_init or Aligned(),
        min_replies=1,
        catch_up_rounds=catch_up_rounds,
        communication=communication or Communication(),
    )


def packing(codec: str) -> Communication:
    compression = Compression(codec_named(codec), EnergyThreshold(0.7), Feedback())
    return Communication(compression, compression)


class Conversation:
    """The server's rounds, and what client x holds of them."""

    def __init__(self, federation: Federation, state: ServerState | None = None) -> None:
        self.federation = federation
        self.state = state or ServerState.initial()
        self.client_state = ClientState()
        self.exact = True

    def close(self, *, usable: bool) -> None:
        """A round of client y; without it nothing is aggregated."""
        number = self.state.round_number + 1
        own = adapter(4, number, dtype=torch.float32)
        if self.federation.aggregator.work.agreed_rows:
            given = self.federation.start(self.state, "y").local
            own = AdapterState.of({name: LoraFactor(own[name].B, given[name].A) for name in own})
        self.state = self.federation.close_round(
            self.state, [update("y", own, round_number=number)] if usable else []
        ).state

    def instruction(self) -> Instruction:
        introduction = Introduction(messages.PROTOCOL, NAME, RANK, 1, 0, "", [], [], [], [], -1)
        content, _ = Exchange(self.federation, self.state, {NAME: introduction}, None).to_train(NAME)
        return protocol.read_instruction(content, lambda _assignment: self._no_rows)

    def attend(self, *, reply_arrives: bool = True) -> None:
        """The client is asked, as often as it takes, and the server learns of it, or does not."""
        instruction = self.instruction()
        after = self.client_state.after(instruction, SHAPES)
        if after is None:
            self.tell(self.client_state.round_number)
            instruction = self.instruction()
            after = self.client_state.after(instruction, SHAPES)
        assert after is not None
        missed = [number for number in self.state.broadcasts if number > instruction.assignment.since]
        # A sum of several broadcasts is rounded in another order than the server's; the whole adapter is none, and what
        # was packed is added one after the other, as at the server.
        whole = instruction.assignment.since == -1 or instruction.assignment.replaces or bool(instruction.packed)
        self.exact = whole or (self.exact and len(missed) <= 1)
        self.client_state = after
        if reply_arrives:
            self.tell(after.round_number)
        memory = RecordDict()
        self.client_state.save(memory)
        self.client_state = ClientState.load(memory)

    def tell(self, holds: int) -> None:
        self.state = self.federation.with_holds(self.state, {NAME: holds if holds >= 0 else None})

    def agree(self, found: AdapterState, expected: AdapterState) -> None:
        assert found.keys() == expected.keys()
        for name in expected:
            if self.exact:
                assert torch.equal(found[name].B, expected[name].B)
                assert torch.equal(found[name].A, expected[name].A)
            else:
                assert relative_error(found[name].delta_weight(), expected[name].delta_weight()) < 1e-5

    @staticmethod
    def _no_rows(module: str, rank: int) -> Tensor:
        raise KeyError(module)


EVENTS = st.lists(
    st.sampled_from(["attended", "attended", "missed", "failed", "reply lost", "state lost", "unlucky"]), max_size=9
)


def live(talk: Conversation, event: str) -> None:
    if event == "state lost":
        talk.client_state = ClientState()
    if event not in {"missed", "failed"}:
        talk.attend(reply_arrives=event not in {"reply lost", "unlucky"})
    talk.close(usable=event not in {"failed", "unlucky"})


@pytest.mark.slow
@settings(max_examples=25)
@given(events=EVENTS, local_init=st.sampled_from([Fresh(), Aligned(), Warm()]), bound=st.sampled_from([1, 2, 16]))
def test_a_client_holds_what_the_server_has_whatever_happened(
    events: list[str], local_init: LocalInit, bound: int
) -> None:
    talk = Conversation(rules(local_init, catch_up_rounds=bound))
    for event in events:
        live(talk, event)
    talk.attend()
    talk.agree(talk.client_state.cumulative, talk.state.cumulative)
    assert talk.client_state.round_number == talk.state.latest
    found, expected = talk.client_state.start(talk.instruction(), RANK, SHAPES), talk.federation.start(talk.state, NAME)
    same_start(talk, found, expected)


@pytest.mark.slow
@settings(max_examples=25)
@given(events=EVENTS, bound=st.sampled_from([1, 2, 16]), tau=st.sampled_from([0.3, 1.0]))
def test_a_client_derives_the_rows_of_the_server_whatever_happened(events: list[str], bound: int, tau: float) -> None:
    talk = Conversation(rules(aggregator=LinearRounds(EnergyThreshold(tau)), catch_up_rounds=bound))
    for event in events:
        live(talk, event)
    talk.attend()
    talk.agree(talk.client_state.cumulative, talk.state.cumulative)
    found = talk.client_state.start(talk.instruction(), RANK, SHAPES).local
    expected = talk.federation.start(talk.state, NAME).local
    assert found.specs == expected.specs
    for name in SHAPES:
        assert not found[name].B.any()
        assert relative_error(found[name].A, expected[name].A) < 1e-6
        if not talk.client_state.directions:
            assert torch.equal(found[name].A, expected[name].A)


@settings(max_examples=25)
@given(events=EVENTS, local_init=st.sampled_from([Fresh(), Aligned(), Warm()]), bound=st.sampled_from([1, 2, 16]))
@pytest.mark.slow
def test_a_client_that_is_sent_what_was_packed_has_the_bits_of_the_server(
    events: list[str], local_init: LocalInit, bound: int
) -> None:
    talk = Conversation(rules(local_init, catch_up_rounds=bound, communication=packing("int4")))
    for event in events:
        live(talk, event)
    talk.attend()
    assert talk.exact
    talk.agree(talk.client_state.cumulative, talk.state.cumulative)
    instruction = talk.instruction()
    same_start(talk, talk.client_state.start(instruction, RANK, SHAPES), talk.federation.start(talk.state, NAME))
    talk.agree(talk.client_state.given(instruction, RANK, SHAPES), local_init.given(talk.state, RANK))


@pytest.mark.slow
@settings(max_examples=25)
@given(events=EVENTS)
def test_a_client_trains_on_from_its_cut_whatever_happened(events: list[str]) -> None:
    talk = Conversation(rules(aggregator=FedIt()))
    for event in events:
        live(talk, event)
    talk.attend()
    found, expected = talk.client_state.start(talk.instruction(), RANK, SHAPES), talk.federation.start(talk.state, NAME)
    same_start(talk, found, expected)
    assert bool(found.local) == bool(talk.state.broadcasts)
    if talk.state.continued:
        own = talk.client_state.global_adapter
        cut = talk.state.continued.map(lambda factor: factor.leading(RANK))
        for name in cut:
            assert relative_error(own[name].delta_weight(), cut[name].delta_weight()) < 1e-5


def same_start(talk: Conversation, found: LocalStart, expected: LocalStart) -> None:
    talk.agree(found.frozen, expected.frozen)
    if isinstance(talk.federation.local_init, Aligned):  # directions are sent as they are, or taken from the same bits
        assert found.local.keys() == expected.local.keys()
        for name in expected.local:
            assert torch.equal(found.local[name].B, expected.local[name].B)
            assert torch.equal(found.local[name].A, expected.local[name].A)
    else:
        talk.agree(found.local, expected.local)


def test_a_failed_round_takes_nothing_away() -> None:
    for federation in (rules(), rules(aggregator=FedIt())):
        talk = Conversation(federation)
        talk.close(usable=True)
        talk.attend()
        before = talk.client_state
        for _ in range(3):
            talk.close(usable=False)
        talk.attend()
        same = talk.client_state.start(talk.instruction(), RANK, SHAPES)
        assert same.local.total_rank == before.start(talk.instruction(), RANK, SHAPES).local.total_rank > 0
        assert talk.client_state.round_number == 1
        assert talk.instruction().added == NO_ADAPTER


def test_what_was_missed_is_one_adapter() -> None:
    talk = Conversation(rules())
    talk.attend()
    for _ in range(4):
        talk.close(usable=True)
    task = talk.instruction().assignment
    assert (task.since, task.until, task.replaces) == (0, 4, False)
    sent = talk.instruction().added
    assert sent.nbytes < sum(broadcast.nbytes for broadcast in talk.state.broadcasts.values())
    talk.attend()
    for name in SHAPES:
        assert (
            relative_error(
                talk.client_state.cumulative[name].delta_weight(), talk.state.cumulative[name].delta_weight()
            )
            < 1e-6
        )


def test_a_download_that_does_not_fit_is_not_taken() -> None:
    talk = Conversation(rules())
    talk.attend()
    talk.close(usable=True)
    talk.close(usable=True)
    instruction = talk.instruction()
    assert instruction.assignment.since == 0
    for holds in (-1, 1, 7):
        assert ClientState(holds).after(instruction, SHAPES) is None
    assert ClientState(0).after(instruction, SHAPES) is not None


def test_the_same_download_twice_is_taken_once() -> None:
    talk = Conversation(rules())
    talk.attend()
    talk.close(usable=True)
    instruction = talk.instruction()
    once = talk.client_state.after(instruction, SHAPES)
    assert once is not None
    assert once.after(instruction, SHAPES) is once


def test_saved_parameters_are_kept_until_others_come() -> None:
    talk = Conversation(rules(), ServerState.initial({"head": torch.ones(2)}))
    talk.attend()
    assert torch.equal(talk.client_state.saved_parameters["head"], torch.ones(2))
    talk.close(usable=False)
    talk.attend()
    assert torch.equal(talk.client_state.saved_parameters["head"], torch.ones(2))


@pytest.mark.parametrize("round_number", [-1, 0, 5])
def test_it_comes_back_from_memory(round_number: int) -> None:
    sent = ClientState(
        round_number,
        adapter(3, 1, dtype=torch.float32),
        adapter(2, 2, dtype=torch.bfloat16),
        adapter(1, 3),
        NO_ADAPTER,
        {"head": torch.ones(2)},
    )
    memory = RecordDict()
    sent.save(memory)
    found = ClientState.load(memory)
    assert found.round_number == round_number
    kept: Mapping[str, tuple[AdapterState, AdapterState]] = {
        name: (getattr(sent, name), getattr(found, name)) for name in ("cumulative", "continued", "last", "directions")
    }
    for before, after in kept.values():
        assert before.specs == after.specs
        assert all(torch.equal(before[k].B, after[k].B) and torch.equal(before[k].A, after[k].A) for k in before)
    assert torch.equal(found.saved_parameters["head"], torch.ones(2))


def test_an_empty_memory_holds_nothing() -> None:
    found = ClientState.load(RecordDict())
    assert found.round_number == -1
    assert not found.cumulative
    assert not found.saved_parameters


def test_a_later_save_replaces_all_of_an_earlier_one() -> None:
    memory = RecordDict()
    ClientState(3, adapter(3, 1), adapter(2, 2), saved_parameters={"head": torch.ones(2)}).save(memory)
    ClientState(4, adapter(1, 1)).save(memory)
    found = ClientState.load(memory)
    assert (found.round_number, found.cumulative.total_rank, found.continued.total_rank) == (4, 3, 0)
    assert not found.saved_parameters


def test_directions_of_another_model_are_refused() -> None:
    task = Assignment(
        1,
        -1,
        1,
        replaces=True,
        seed=0,
        rows_seed=0,
        max_rank=1,
        trained=3,
        local_init="aligned",
        counted=0,
        upload=AS_THEY_ARE,
    )
    with pytest.raises(InvalidUpdateError, match="q: expected rows of a module of this model"):
        ClientState().after(Instruction(task, NO_ADAPTER, NO_ADAPTER, {"q": torch.ones(1, 3)}, {}), SHAPES)


def test_all_that_a_client_holds_is_the_global_adapter() -> None:
    talk = Conversation(rules())
    talk.close(usable=True)
    talk.close(usable=True)
    talk.attend()
    talk.agree(talk.client_state.global_adapter, talk.state.global_adapter)
