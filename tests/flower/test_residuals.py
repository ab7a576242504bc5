"""What clients and server hold back over Flower: nothing is lost, and nothing counts twice, whatever goes wrong."""

import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from flwr.app import Message, RecordDict
from torch import Tensor

from florist.aggregation import Florist
from florist.compression.codecs import CODECS, FloatCodec, IntegerCodec, codec_named
from florist.compression.feedback import Compression, Feedback
from florist.compression.packed import PackedAdapter, PackedFactor
from florist.compression.residual import NOTHING_OWED, Residual
from florist.errors import ConfigurationError
from florist.federation.communication import Communication
from florist.federation.local_init import LocalStart
from florist.federation.records import RoundRecord
from florist.flower import FloristStrategy, Journal
from florist.flower.messages import TRAIN, Assignment, Upload
from florist.flower.participant import TrainedLocally
from florist.flower.pending_residuals import PendingResiduals, misfit
from florist.flower.protocol import read_reply, write_reply
from florist.flower.upload_terms import UploadTerms
from florist.ranks import ByteBudget, EnergyThreshold, FixedRank
from florist.rounds import Broadcast, ClientUpdate, ClientWork, SavedParameters
from florist.seeding import derive_seed
from tests.builders import SHAPES, adapter, dense_sum, relative_error
from tests.flower.grids import MemoryGrid
from tests.flower.participants import Light, between, dense, play, trained_adapter

UNBOUNDED = Feedback(rank_factor=20.0)
"""Lets nothing go, so that sums are exact to rounding."""


def communication(codec: str = "int4", *, feedback: Feedback = UNBOUNDED) -> Communication:
    return Communication(
        Compression(codec_named(codec), EnergyThreshold(0.8), feedback),
        Compression(codec_named(codec), EnergyThreshold(0.7), feedback),
        FloatCodec(torch.float16),
        FloatCodec(torch.float16),
    )


def four() -> dict[int, Light]:
    return {7: Light("a", 2, 1), 8: Light("b", 3, 2), 9: Light("c", 4, 5), 10: Light("d", 2, 3)}


def held_by(grid: MemoryGrid, node: int, client: Light, records: Sequence[RoundRecord]) -> Residual:
    """What a client holds back by the server's records of what counted."""
    counted = [line.round for line in records if line.aggregated and client.client_id in names(line)]
    found = PendingResiduals.load(grid.contexts[node].state, client.client_id).since(max(counted, default=0))
    return found if found is not None else NOTHING_OWED


def names(line: RoundRecord) -> list[str]:
    return [each.client_id for each in line.clients]


# --- the invariant


@dataclass
class Recording:
    """The exact sum, and every update that went into it."""

    method: Florist = field(default_factory=lambda: Florist(EnergyThreshold(1.0)))
    rounds: list[Sequence[ClientUpdate]] = field(default_factory=list)

    @property
    def work(self) -> ClientWork:
        return self.method.work

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        self.rounds.append(updates)
        return self.method(updates)


def absurd(upload: Upload) -> Upload:
    assert upload.packed is not None
    factor = next(iter(upload.packed.factors.values()))
    assert factor.B is not None
    name = "scales" if "scales" in factor.B else "values"
    factor.B[name].fill_(float("nan"))
    return upload


class Weather:
    """What happens to each client in each round, drawn from a seed."""

    def __init__(self, seed: int, nodes: Sequence[int]) -> None:
        draw = random.Random(seed)  # noqa: S311  # no secret
        kinds = ["well", "well", "well", "late", "refused", "away", "forgetful"]
        self.of = {(number, node): draw.choice(kinds) for number in range(1, 11) for node in nodes}

    def deliver(self, message: Message, reply: Message) -> list[Message]:
        if message.metadata.message_type != TRAIN:
            return [reply]
        kind = self.of[int(message.metadata.group_id), message.metadata.dst_node_id]
        if kind == "late":
            return []
        return [forged(message, reply, absurd)] if kind == "refused" else [reply]


def forged(message: Message, reply: Message, change: Callable[[Upload], Upload]) -> Message:
    said = read_reply(reply.content, lambda _module, _rank: torch.zeros(0, 0))
    return Message(write_reply(change(said)), reply_to=message) if isinstance(said, Upload) else reply


@pytest.mark.parametrize(
    ("codec", "seed"),
    [
        ("int4", 0),
        *(
            pytest.param(codec, seed, marks=pytest.mark.slow)
            for codec, seed in (
                ("int4", 1),
                ("int8", 0),
                ("int8", 1),
                ("float16", 0),
                ("float16", 1),
                ("float32", 0),
                ("float32", 1),
            )
        ),
    ],
)
def test_nothing_is_lost_and_nothing_counts_twice(codec: str, seed: int) -> None:
    clients, recording = four(), Recording()
    weather = Weather(seed, list(clients))
    strategy, grid = between(
        clients,
        aggregator=recording,
        communication=communication(codec),
        deliver=weather.deliver,
        fraction=0.75,
        min_replies=2,
        min_clients=1,
        evaluate_on_clients=True,
    )
    forgotten = {node: {module: torch.zeros(shape).double() for module, shape in SHAPES.items()} for node in clients}
    for number in range(1, 11):
        grid.absent = {node for node in clients if weather.of[number, node] == "away"}
        for node, client in clients.items():
            if weather.of[number, node] == "forgetful":
                lost = held_by(grid, node, client, strategy.records)
                for module in SHAPES:
                    forgotten[node][module] += dense(lost.adapter, module)
                grid.forget(node)
        strategy.start(grid, num_rounds=number)
    records = strategy.records
    assert len(records) == 10
    assert any(line.dropped for line in records)
    assert 0 < sum(line.aggregated for line in records) == len(recording.rounds)
    assert any(line.held_back > 0 for line in records)
    for module, shape in SHAPES.items():
        uploads = sum((dense_sum(some, module) for some in recording.rounds), torch.zeros(shape).double())
        found = dense(strategy.state.cumulative, module) + dense(strategy.state.owed.adapter, module)
        assert relative_error(found, uploads) < 2e-4
        for node, client in clients.items():
            trained, sent = torch.zeros(shape).double(), torch.zeros(shape).double()
            for line in records:
                if line.aggregated and client.client_id in names(line):
                    own = trained_adapter(client, derive_seed(0, "training", line.round, client.client_id))
                    trained += dense(own, module)
            for some in recording.rounds:
                sent += sum((dense(each.adapter, module) for each in some if each.client_id == client.client_id), 0.0)
            left = dense(held_by(grid, node, client, records).adapter, module)
            assert relative_error(sent + left + forgotten[node][module], trained) < 2e-4


# --- what is refused


def with_left_half(change: Callable[[dict[str, Tensor]], Mapping[str, Tensor] | None]) -> Callable[[Upload], Upload]:
    """An upload whose first module has other parts of B."""

    def changed(upload: Upload) -> Upload:
        assert upload.packed is not None
        name, factor = next(iter(upload.packed.factors.items()))
        return with_factor(upload, name, replace(factor, B=change(dict(factor.B or {}))))

    return changed


def with_factor(upload: Upload, name: str, factor: PackedFactor) -> Upload:
    assert upload.packed is not None
    return replace(upload, packed=PackedAdapter(upload.packed.codec, {**upload.packed.factors, name: factor}))


def of_first(**fields: object) -> Callable[[Upload], Upload]:
    def changed(upload: Upload) -> Upload:
        assert upload.packed is not None
        name, factor = next(iter(upload.packed.factors.items()))
        return with_factor(upload, name, replace(factor, **fields))

    return changed


def by_codec(bits: int) -> Callable[[Upload], Upload]:
    return lambda upload: replace(upload, packed=PackedAdapter(IntegerCodec(bits), {}))


def scaled_by(value: float) -> Callable[[Upload], Upload]:
    return with_left_half(lambda parts: {**parts, "scales": torch.full_like(parts["scales"], value)})


KNOWN = ", ".join(CODECS)
FIRST = "layers.0.q_proj"
TWO = {FIRST: (12, 16)}


@pytest.mark.parametrize(
    ("change", "telling"),
    [
        (by_codec(5), f"expected one of the codecs {KNOWN}, got 'int5'"),
        (by_codec(8), "expected factors packed by the codec int4, got int8"),
        (
            lambda upload: replace(upload, packed=None, adapter=adapter(2, 1, dtype=torch.float32)),
            "expected factors packed by the codec int4, got none",
        ),
        (
            lambda upload: replace(upload, adapter=adapter(2, 1, dtype=torch.float32)),
            "expected factors packed by the codec int4 and nothing beside them",
        ),
        (with_left_half(lambda parts: {**parts, "codes": parts["codes"][:-1]}), f"{FIRST}: expected codes of shape"),
        (with_left_half(lambda parts: {**parts, "codes": parts["codes"].float()}), "in torch.uint8, got"),
        (with_left_half(lambda parts: {**parts, "scales": parts["scales"].float()}), "in torch.bfloat16, got"),
        (
            with_left_half(lambda parts: {"codes": parts["codes"]}),
            "expected the parts ['codes', 'scales'], got ['codes']",
        ),
        (
            with_left_half(lambda parts: {**parts, "more": parts["codes"]}),
            "expected the parts ['codes', 'scales'], got",
        ),
        (with_left_half(lambda _parts: None), f"{FIRST}: expected both halves"),
        (scaled_by(float("nan")), f"{FIRST}: expected scales from 0 to 1e+18, got nan"),
        (scaled_by(float("inf")), "expected scales from 0 to 1e+18, got inf"),
        (scaled_by(1e30), "expected scales from 0 to 1e+18, got 1.0e+30"),
        (scaled_by(-1.0), "expected scales from 0 to 1e+18, got -1.0e+00"),
        (scaled_by(0.0), "expected codes of 0 where the scale is 0"),
        (of_first(shape=(16, 12)), f"{FIRST}: expected the shape (12, 16), got (16, 12)"),
        (of_first(shape=(2**30, 1), rank=0), f"{FIRST}: expected the shape (12, 16), got (1073741824"),
        (of_first(rank=2**30), "expected a rank of at most 2, as introduced, got 1073741824"),
        (of_first(rank=1), f"{FIRST}: expected codes of shape"),
        (of_first(rank=10**30), "expected "),
        (
            lambda upload: replace(
                upload, packed=PackedAdapter.of(adapter(3, 1, shapes=TWO, dtype=torch.float32), codec_named("int4"))
            ),
            "expected a rank of at most 2, as introduced, got 3",
        ),
        (
            lambda upload: replace(
                upload,
                packed=PackedAdapter.of(
                    adapter(2, 1, shapes={"lm_head": (4, 4)}, dtype=torch.float32), codec_named("int4")
                ),
            ),
            "lm_head is not a module that this federation trains",
        ),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.quick(6)
def test_what_is_not_packed_as_it_was_asked_for_costs_one_update(
    change: Callable[[Upload], Upload], telling: str
) -> None:
    clients = four()

    def deliver(message: Message, reply: Message) -> list[Message]:
        first = message.metadata.message_type == TRAIN and message.metadata.dst_node_id == 7
        return [forged(message, reply, change) if first and message.metadata.group_id == "2" else reply]

    strategy, grid = play(clients, rounds=3, communication=communication(), deliver=deliver)
    assert [names(line) for line in strategy.records] == [list("abcd"), list("bcd"), list("abcd")]
    (drop,) = strategy.records[1].dropped
    assert drop.client_id == "a"
    assert telling in drop.reason
    # What it held back before the round was held back still, and went into the third.
    assert sorted(PendingResiduals.load(grid.contexts[7].state, "a").by_round) == [1, 3]
    assert sorted(PendingResiduals.load(grid.contexts[8].state, "b").by_round) == [2, 3]


def test_factors_that_a_codec_packed_are_refused_where_none_is_agreed_on() -> None:
    packed = PackedAdapter.of(adapter(2, 1, dtype=torch.float32), codec_named("int8"))

    def deliver(message: Message, reply: Message) -> list[Message]:
        if message.metadata.message_type != TRAIN or message.metadata.dst_node_id != 7:
            return [reply]
        return [forged(message, reply, lambda upload: replace(upload, adapter=adapter(0, 1), packed=packed))]

    strategy, _ = play(four(), deliver=deliver)
    (drop,) = strategy.records[0].dropped
    assert "expected factors packed by the codec none, got int8" in drop.reason


def test_saved_parameters_in_another_type_than_agreed_on_are_refused() -> None:
    clients = four()
    for client in clients.values():
        client.saved_parameters = {"head": torch.ones(3)}

    def deliver(message: Message, reply: Message) -> list[Message]:
        if message.metadata.message_type != TRAIN or message.metadata.dst_node_id != 7:
            return [reply]
        wide = {"head": torch.ones(3)}
        return [forged(message, reply, lambda upload: replace(upload, saved_parameters=wide))]

    strategy, _ = play(clients, communication=communication(), deliver=deliver)
    (line,) = strategy.records
    assert names(line) == list("bcd")
    assert "head: expected torch.float16, as the codec sends it, got torch.float32" in line.dropped[0].reason
    assert strategy.state.saved_parameters["head"].dtype == torch.float32


@dataclass
class Diverging(Light):
    """A client whose training in round 2 gives no numbers."""

    def train(self, start: LocalStart, saved_parameters: SavedParameters, assignment: Assignment) -> TrainedLocally:
        outcome = super().train(start, saved_parameters, assignment)
        if assignment.round_number != 2:
            return outcome
        return replace(outcome, adapter=outcome.adapter.map(lambda factor: factor.scaled(float("nan"))))


@pytest.mark.parametrize("sending", [communication(), Communication(upload=Compression(codec_named("int8")))])
@pytest.mark.quick(1)
def test_a_training_that_diverged_leaves_what_was_held_back_as_it_was(sending: Communication) -> None:
    clients = {**four(), 7: Diverging("a")}
    strategy, grid = play(clients, rounds=3, communication=sending)
    assert [names(line) for line in strategy.records] == [list("abcd"), list("bcd"), list("abcd")]
    (drop,) = strategy.records[1].dropped
    assert "expected finite" in drop.reason
    feedback = sending.upload is not None and sending.upload.feedback is not None
    assert sorted(PendingResiduals.load(grid.contexts[7].state, "a").by_round) == ([1, 3] if feedback else [0])


# --- bytes


@pytest.mark.parametrize("codec", ["int4", "float16"])
def test_bytes_are_those_that_came(codec: str) -> None:
    clients, came = four(), {}
    for client in clients.values():
        client.saved_parameters = {"head": torch.ones(3)}

    def deliver(message: Message, reply: Message) -> list[Message]:
        if message.metadata.message_type == TRAIN:
            said = read_reply(reply.content, lambda _module, _rank: torch.zeros(0, 0))
            assert isinstance(said, Upload)
            assert said.packed is not None
            assert said.saved_parameters["head"].dtype == torch.float16
            came[said.report.client_id] = said.packed.nbytes + 3 * 2, said.report.held_back
        return [reply]

    strategy, _ = play(clients, communication=communication(codec), deliver=deliver)
    (line,) = strategy.records
    assert {each.client_id: (each.upload_bytes, each.held_back) for each in line.clients} == came
    assert line.upload_bytes < sum(4 * each.rank * sum(map(sum, SHAPES.values())) for each in clients.values())


# --- memory


@pytest.mark.slow
def test_a_client_that_lost_its_memory_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    clients = four()
    strategy, grid = between(clients, communication=communication())
    strategy.start(grid, num_rounds=2)
    grid.forget(7)
    late = {"4"}

    def deliver(message: Message, reply: Message) -> list[Message]:
        is_late = message.metadata.group_id in late and message.metadata.dst_node_id == 7
        return [] if is_late and message.metadata.message_type == TRAIN else [reply]

    grid.deliver = deliver
    strategy.start(grid, num_rounds=5)
    told = [text for text in caplog.messages if "begins with nothing held back" in text]
    assert told == [
        "round 3: a begins with nothing held back: it has not kept what it held back after round 2",
    ]
    assert [names(line) for line in strategy.records[2:]] == [list("abcd"), list("bcd"), list("abcd")]
    # The record has what it holds back of this update alone.
    own = trained_adapter(clients[7], derive_seed(0, "training", 3, "a"))
    expected = communication().upload(own, max_rank=2)
    assert strategy.records[2].clients[0].held_back == Residual(expected.held_back).norm


@pytest.mark.slow
def test_a_loss_of_memory_in_a_round_that_does_not_count_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    strategy, grid = between(four(), communication=communication())
    strategy.start(grid, num_rounds=2)
    grid.forget(7)
    change = scaled_by(float("nan"))

    def deliver(message: Message, reply: Message) -> list[Message]:
        first = message.metadata.message_type == TRAIN and message.metadata.dst_node_id == 7
        return [forged(message, reply, change) if first and message.metadata.group_id == "3" else reply]

    grid.deliver = deliver
    strategy.start(grid, num_rounds=4)
    assert names(strategy.records[2]) == list("bcd")
    assert names(strategy.records[3]) == list("abcd")
    assert not [text for text in caplog.messages if "round 4: a begins" in text]


@pytest.mark.parametrize(
    ("strange", "telling"),
    [
        (
            Residual(adapter(1, 1, shapes={FIRST: (12, 9)}, dtype=torch.float32)),
            f"{FIRST}: expected the shape (12, 16), got a residual of the shape (12, 9)",
        ),
        (
            Residual(adapter(1, 1, shapes={"gone": (2, 3)}, dtype=torch.float32)),
            "gone: expected no such module, got a residual of the shape (2, 3)",
        ),
        (
            Residual(saved_parameters={"head": torch.ones(4)}),
            "head: expected no such parameter, got a residual of the shape (4,)",
        ),
    ],
)
@pytest.mark.quick(1)
def test_a_residual_of_another_model_is_left_behind(
    strange: Residual, telling: str, caplog: pytest.LogCaptureFixture
) -> None:
    strategy, grid = between(four(), communication=communication())
    strategy.start(grid, num_rounds=1)
    PendingResiduals({1: strange}).save(grid.contexts[7].state, "a")
    strategy.start(grid, num_rounds=2)
    assert names(strategy.records[1]) == list("abcd")
    assert f"round 2: a begins with nothing held back: {telling}" in caplog.messages


def test_a_residual_of_a_saved_parameter_has_its_shape() -> None:
    residual = Residual(saved_parameters={"head": torch.ones(4)})
    assert misfit(residual, {}, {"head": torch.ones(4)}) is None
    assert misfit(residual, {}, {"head": torch.ones(2)}) == (
        "head: expected the shape (2,), got a residual of the shape (4,)"
    )


def test_a_node_that_is_started_as_another_client_does_not_send_what_the_other_held_back() -> None:
    memory = RecordDict()
    PendingResiduals({0: NOTHING_OWED, 3: Residual(adapter(1, 1))}).save(memory, "a")
    assert sorted(PendingResiduals.load(memory, "a").by_round) == [0, 3]
    found = PendingResiduals.load(memory, "b")
    assert found.since(3) is None
    assert found.since(0) == NOTHING_OWED


def test_what_is_held_back_comes_back_from_memory() -> None:
    memory = RecordDict()
    PendingResiduals({2: Residual(adapter(1, 1), {"head": torch.ones(2)}), 5: NOTHING_OWED}).save(memory, "a")
    found = PendingResiduals.load(memory, "a").since(2)
    assert found is not None
    assert all(torch.equal(found.adapter[name].B, factor.B) for name, factor in adapter(1, 1).items())
    assert torch.equal(found.saved_parameters["head"], torch.ones(2))
    PendingResiduals({7: Residual(adapter(2, 2))}).save(memory, "a")
    again = PendingResiduals.load(memory, "a")
    assert list(again.by_round) == [7]
    assert again.by_round[7].adapter.total_rank == 2 * len(SHAPES)


# --- resuming


def assert_same(one: FloristStrategy, other: FloristStrategy) -> None:
    for mine, its in (
        (one.state.cumulative, other.state.cumulative),
        (one.state.owed.adapter, other.state.owed.adapter),
    ):
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[name].B, its[name].B) and torch.equal(mine[name].A, its[name].A) for name in its)
    assert [replace(line, seconds={}, download_bytes=0, clients=()) for line in one.records] == [
        replace(line, seconds={}, download_bytes=0, clients=()) for line in other.records
    ]
    assert [[each.held_back for each in line.clients] for line in one.records] == [
        [each.held_back for each in line.clients] for line in other.records
    ]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_server_that_is_resumed_goes_on_with_what_was_held_back(stop: int, tmp_path: Path) -> None:
    settings = {"communication": communication(), "fraction": 0.75}
    whole, _ = play(four(), rounds=4, **settings)
    clients = four()
    first, grid = between(clients, journal=Journal(tmp_path / "run", "florist"), **settings)
    first.start(grid, num_rounds=stop)
    second, _ = between(clients, journal=Journal(tmp_path / "run", "florist"), **settings)
    second.start(grid, num_rounds=4)
    assert_same(second, whole)


@pytest.mark.slow
def test_a_server_that_was_killed_before_it_saved_a_round_plays_it_again(tmp_path: Path) -> None:
    """The clients have trained the round by then, and must not take it for one that counted."""
    settings = {"communication": communication()}
    whole, _ = play(four(), rounds=4, **settings)
    clients = four()
    first, grid = between(clients, journal=Journal(tmp_path / "run", "florist"), **settings)
    first.start(grid, num_rounds=2)
    shutil.copytree(tmp_path / "run", tmp_path / "before")
    first.start(grid, num_rounds=3)
    second, _ = between(clients, journal=Journal(tmp_path / "before", "florist"), **settings)
    second.start(grid, num_rounds=4)
    assert_same(second, whole)


def test_a_run_is_not_resumed_with_another_communication(tmp_path: Path) -> None:
    play(four(), communication=communication(), journal=Journal(tmp_path / "run", "florist"))
    with pytest.raises(ConfigurationError, match=r"communication = Communication\(.*: expected Communication\(.*begin"):
        play(four(), communication=communication("int8"), journal=Journal(tmp_path / "run", "florist"))


# --- terms


@pytest.mark.parametrize(
    "sending",
    [
        Communication(),
        communication(),
        Communication(upload=Compression(codec_named("int8"))),
        Communication(upload=Compression(codec_named("float32"), None, Feedback())),
        Communication(upload=Compression(codec_named("int3"), ByteBudget(10_000, 0.375, 4)), saved_upload=FloatCodec()),
    ],
)
def test_terms_make_the_upload_that_they_were_made_from(sending: Communication) -> None:
    found = UploadTerms.of(sending).communication
    assert (found.upload, found.saved_upload) == (sending.upload, sending.saved_upload)


@pytest.mark.parametrize(
    "upload",
    [
        Compression(codec_named("int4"), FixedRank(2)),
        Compression(codec_named("int4"), ByteBudget(1000)),
    ],
)
def test_an_upload_that_clients_cannot_be_told_of_is_refused(upload: Compression) -> None:
    with pytest.raises(ConfigurationError, match="expected an upload that is cut by EnergyThreshold, or by ByteBudget"):
        play(four(), communication=Communication(upload=upload))


@pytest.mark.parametrize(
    ("changes", "telling"),
    [
        ({"codec": "int5"}, f"expected one of the codecs {KNOWN}, got 'int5'"),
        ({"saved_codec": "int4"}, "expected saved parameters in a floating-point type, got 'int4'"),
        ({"cut": "sketch"}, "expected a cut of whole, tau, budget, got 'sketch'"),
        ({"limit": 7.0}, "tau"),
    ],
)
def test_terms_that_a_client_does_not_know_cost_no_training(
    changes: Mapping[str, object], telling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients, of = four(), UploadTerms.of
    monkeypatch.setattr(UploadTerms, "of", lambda sending: replace(of(sending), **changes))
    strategy, _ = play(clients, communication=communication(), min_replies=1)
    assert {drop.client_id for drop in strategy.records[0].dropped} == set("abcd")
    assert all(telling in drop.reason for drop in strategy.records[0].dropped)
    assert not any(client.starts for client in clients.values())
