"""Rounds over a grid in memory, with clients whose updates are random factors."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict

from florist.aggregation import FedIt, FedSvd, FfaLora, Florist, LinearRounds
from florist.errors import ConfigurationError, DirectoryInUseError, InvalidUpdateError, TooFewClientsError
from florist.factors import AdapterState, LoraFactor
from florist.federation.guard import Guard
from florist.federation.local_init import Aligned, Continued, Fresh, Warm
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.files.locking import sole_process
from florist.flower import Agreement, FloristStrategy, Journal, envelope
from florist.flower.arrays import adapter_to_arrays, digest
from florist.flower.client_metrics import weighted_mean
from florist.flower.messages import EVALUATE, HELLO, SAVED_PARAMETERS, TRAIN, Evaluation, OutOfStep, Upload
from florist.flower.protocol import read_reply, write_reply
from florist.ranks import EnergyThreshold
from florist.rounds import Aggregator, Trained
from florist.seeding import derive_seed
from tests.builders import SHAPES, adapter, relative_error
from tests.flower.grids import MemoryGrid, unavailable
from tests.flower.participants import Light, app_of, between, dense, expected_sum, play, trained_adapter

Change = Callable[[Upload], Upload | Evaluation | OutOfStep]


def three() -> dict[int, Light]:
    return {7: Light("a", 2, 1), 8: Light("b", 3, 2), 9: Light("c", 4, 5)}


def of_type(message: Message, kind: str, node: int = 7) -> bool:
    return message.metadata.message_type == kind and message.metadata.dst_node_id == node


def forging(change: Change, kind: str = TRAIN, node: int = 7) -> Callable[[Message, Message], list[Message]]:
    """Node 7 sends something else than its client said, properly sealed."""

    def deliver(message: Message, reply: Message) -> list[Message]:
        if not of_type(message, kind, node):
            return [reply]
        said = read_reply(reply.content, lambda _module, _rank: torch.zeros(0, 0))
        return [Message(write_reply(change(said)), reply_to=message)]  # pyright: ignore[reportArgumentType]

    return deliver


def reported(**fields: object) -> Change:
    return lambda upload: replace(upload, report=replace(upload.report, **fields))


def with_adapter(**settings: object) -> Change:
    return lambda upload: replace(upload, adapter=adapter(**{"rank": 2, "seed": 1, "dtype": torch.float32, **settings}))


def with_nan(upload: Upload) -> Upload:
    upload.adapter["layers.1.up"].B[3, 1] = math.nan
    return upload


def assert_sum_of(strategy: FloristStrategy, rounds: list[list[Light]]) -> None:
    for module in SHAPES:
        expected = sum((expected_sum(some, number, module) for number, some in enumerate(rounds, 1)), torch.zeros(()))
        assert relative_error(dense(strategy.state.cumulative, module), expected) < 1e-5


# --- what is good


@pytest.mark.parametrize("local_init", [Fresh(), Aligned()])
@pytest.mark.quick(1)
def test_rounds_give_the_exact_weighted_sum(local_init: Fresh | Aligned) -> None:
    clients = three()
    strategy, grid = play(clients, rounds=3, local_init=local_init)
    assert_sum_of(strategy, [list(clients.values())] * 3)
    assert [line.round for line in strategy.records] == [1, 2, 3]
    assert all([client.client_id for client in line.clients] == ["a", "b", "c"] for line in strategy.records)
    assert all(not line.dropped for line in strategy.records)
    assert grid.nodes_of(TRAIN) == [7, 8, 9] * 3


def test_warm_clients_train_on_from_the_global_adapter() -> None:
    clients = three()
    strategy, _ = play(clients, rounds=2, local_init=Warm())
    given = clients[7].starts[1][1].local
    # What everybody sent in round 2 takes the place of what it was given; what it held frozen stays.
    for module in SHAPES:
        kept = sum(
            ((client.num_examples / 8) * dense(client.starts[1][1].frozen, module) for client in clients.values()),
            torch.zeros(()),
        )
        expected = kept + expected_sum(list(clients.values()), 2, module)
        assert relative_error(dense(strategy.state.cumulative, module), expected) < 1e-5
    assert given.total_rank == 2 * len(SHAPES)


@pytest.mark.parametrize(
    "aggregator",
    [Florist(EnergyThreshold(1.0)), FedIt(), FfaLora(), LinearRounds(EnergyThreshold(1.0)), FedSvd()],
    ids=lambda method: type(method).__name__,
)
@pytest.mark.parametrize("on_clients", [True, False])
def test_clients_start_as_in_the_process(aggregator: Aggregator, on_clients: bool) -> None:
    """`Federation.start` is what the in-process engine gives; the grid's clients find the same bits."""
    clients = {7: Light("a", 2), 8: Light("b", 3)}
    for client in clients.values():
        client.trained = aggregator.work.trained
    strategy, grid = between(clients, aggregator=aggregator, evaluate_on_clients=on_clients)
    strategy.start(grid, num_rounds=1)
    for number in (2, 3):
        before = strategy.state
        rules = Federation({"a": 2, "b": 3}, aggregator, SHAPES, 0)
        strategy.start(grid, num_rounds=number)
        for client in clients.values():
            at, found = client.starts[-1]
            assert at == number
            expected = rules.start(before, client.client_id)
            for own, its in ((found.frozen, expected.frozen), (found.local, expected.local)):
                assert own.specs == its.specs
                assert all(torch.equal(own[k].B, its[k].B) and torch.equal(own[k].A, its[k].A) for k in its)


def test_the_draw_of_participants_is_the_federations() -> None:
    clients = {node: Light(name) for node, name in zip((31, 5, 17, 8), "dbca", strict=True)}
    strategy, _ = play(clients, rounds=5, fraction=0.5, seed=3)
    rules = Federation(dict.fromkeys("abcd", 2), Florist(EnergyThreshold(1.0)), SHAPES, 3, fraction=0.5)
    asked = [tuple(client.client_id for client in line.clients) for line in strategy.records]
    assert asked == [rules.participants(number) for number in range(1, 6)]
    assert len(set(asked)) > 1


def test_the_result_holds_the_global_adapter() -> None:
    strategy, grid = between(three())
    result = strategy.start(grid, num_rounds=2)
    expected = adapter_to_arrays(strategy.state.global_adapter)
    assert {name: array.data for name, array in result.arrays.items()} == {
        name: array.data for name, array in expected.items()
    }
    assert result.train_metrics_clientapp[2]["clients"] == 3


# --- what is bad: one update is lost, and its reason told


@pytest.mark.parametrize(
    ("change", "telling"),
    [
        (with_nan, "layers.1.up holds NaN or inf"),
        (with_adapter(rank=3), "expected a rank of at most 2, as introduced, got 3"),
        (
            with_adapter(shapes={**SHAPES, "layers.1.up": (9, 20)}),
            "layers.1.up: expected the shape (20, 9), got (9, 20)",
        ),
        (with_adapter(shapes={**SHAPES, "lm_head": (4, 4)}), "lm_head is not a module that this federation trains"),
        (with_adapter(dtype=torch.int32), "expected floating-point factors"),
        (reported(round_number=2), "expected an update of round 1, got one of round 2"),
        (reported(round_number=0), "expected an update of round 1, got one of round 0"),
        (reported(base="another"), "expected the base the base, as introduced, got another"),
        (reported(num_examples=2), "expected 1 examples, as introduced, got 2"),
        (reported(client_id="b"), "expected a reply of a, got one that says b"),
        (reported(holds=3), "expected a reply from the global adapter of round 0, got one from 3"),
        (lambda upload: replace(upload, saved_parameters={"head": torch.ones(1)}), "expected the saved parameters []"),
        (lambda _upload: Evaluation("a", 0, 1, ["loss"], [0.0]), "expected the kind Upload, got Evaluation"),
        (lambda _upload: OutOfStep("a", 0), "it holds something else after it was sent what it misses"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_an_update_that_does_not_fit_is_dropped(change: Change, telling: str) -> None:
    clients = three()
    strategy, _ = play(clients, deliver=forging(change))
    (line,) = strategy.records
    assert [client.client_id for client in line.clients] == ["b", "c"]
    assert [drop.client_id for drop in line.dropped] == ["a"]
    assert telling in line.dropped[0].reason
    assert_sum_of(strategy, [[clients[8], clients[9]]])
    assert "a" not in strategy.state.holds or strategy.state.holds["a"] == 0


def replies(*make: Callable[[Message, Message], Message]) -> Callable[[Message, Message], list[Message]]:
    """What comes in the place of the first client's update."""
    return lambda message, reply: [each(message, reply) for each in make] if of_type(message, TRAIN) else [reply]


@pytest.mark.parametrize(
    ("deliver", "telling"),
    [
        (replies(), "no reply within"),
        (replies(lambda message, _: unavailable(message)), "Node Unavailable"),
        (
            replies(lambda message, _: Message(Error(2, "Traceback\n  line\nOutOfMemoryError: x"), reply_to=message)),
            "OutOfMemoryError: x",
        ),
        (
            replies(lambda message, _: Message(RecordDict({"florist": ConfigRecord({"a": b"\0"})}), reply_to=message)),
            "expected the kind Report, got None",
        ),
        (replies(lambda message, _: Message(RecordDict(), reply_to=message)), "expected a message of florist"),
    ],
)
def test_a_reply_that_is_none_is_dropped(deliver: Callable[[Message, Message], list[Message]], telling: str) -> None:
    clients = three()
    strategy, _ = play(clients, deliver=deliver)
    (line,) = strategy.records
    assert [drop.client_id for drop in line.dropped] == ["a"]
    assert telling in line.dropped[0].reason
    assert_sum_of(strategy, [[clients[8], clients[9]]])


def test_a_reply_twice_counts_once() -> None:
    clients = three()
    strategy, _ = play(clients, rounds=2, deliver=lambda _message, reply: [reply, reply])
    assert_sum_of(strategy, [list(clients.values())] * 2)
    assert all(len(line.clients) == 3 for line in strategy.records)
    assert {drop.reason for drop in strategy.records[0].dropped} == {"a second update in one round; the first counts"}


def test_a_reply_of_the_round_before_is_passed_over() -> None:
    clients, kept = three(), []

    def deliver(message: Message, reply: Message) -> list[Message]:
        if of_type(message, TRAIN):
            kept.append(reply)
            return [kept[0]]
        return [reply]

    strategy, _ = play(clients, rounds=2, deliver=deliver)
    assert [len(line.clients) for line in strategy.records] == [3, 2]
    assert "no reply" in strategy.records[1].dropped[0].reason


def test_a_client_may_not_claim_more_than_the_limit() -> None:
    clients = three()
    strategy, _ = play(clients, max_examples=4)
    (line,) = strategy.records
    assert [(drop.client_id, drop.reason) for drop in line.dropped] == [
        ("c", "expected at most 4 examples of one client, got 5")
    ]


def test_another_base_is_refused_at_the_door() -> None:
    clients = {**three(), 10: Light("d", base="another")}
    strategy, grid = play(clients, min_clients=3)
    assert sorted(client.client_id for client in strategy.records[0].clients) == ["a", "b", "c"]
    assert grid.nodes_of(TRAIN) == [7, 8, 9]
    assert strategy._members.roster.refused == {10: "d: expected the base the base, got another"}


def test_who_is_refused_does_not_count_to_begin_with() -> None:
    clients = {7: Light("a"), 8: Light("b", base="another")}
    strategy, grid = between(clients, reference=Agreement("the base", SHAPES))
    with pytest.raises(TooFewClientsError, match=r"expected 2 clients .* got a; node 8: b: expected the base the base"):
        strategy.start(grid, num_rounds=1)


def test_other_modules_are_refused_at_the_door() -> None:
    clients = {**three(), 10: Light("d", shapes={"q": (3, 3)}), 11: Light("e", shapes={"layers.1.up": (20, 9)})}
    strategy, grid = play(clients, min_clients=4)
    assert strategy._members.roster.refused == {10: "d: q: expected no such module, got (3, 3)"}
    assert 11 in grid.nodes_of(TRAIN)


@pytest.mark.usefixtures("without_shape_checks")
def test_what_a_client_says_makes_no_line_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    forged = "x\nround 1: 3 of 3 clients count\x1b[2K"
    for deliver in (
        forging(with_adapter(shapes={**SHAPES, 100 * forged: (4, 4)})),
        replies(lambda message, _: Message(Error(2, 100 * forged.replace("\n", "\r")), reply_to=message)),
        replies(lambda message, _: Message(RecordDict({100 * forged: ConfigRecord({})}), reply_to=message)),
    ):
        strategy, _ = play(three(), deliver=deliver)
        (drop,) = strategy.records[0].dropped
        assert drop.reason.isprintable()
        assert len(drop.reason) <= 400
    dropped = [message for message in caplog.messages if "is dropped" in message]
    assert len(dropped) == 3
    assert all(message.isprintable() for message in dropped)


def test_a_method_that_clients_do_not_follow_costs_their_updates() -> None:
    clients = three()
    clients[7].trained = Trained.B
    strategy, _ = play(clients)
    assert "need the same aggregation.method" in strategy.records[0].dropped[0].reason


# --- too few


def test_a_round_with_too_few_keeps_the_adapter_and_the_next_works() -> None:
    clients = three()
    rounds = {"now": 0}

    def deliver(message: Message, reply: Message) -> list[Message]:
        rounds["now"] = int(message.metadata.group_id or 0)
        return [] if message.metadata.message_type == TRAIN and rounds["now"] == 2 else [reply]

    strategy, _ = play(clients, rounds=3, deliver=deliver)
    assert [line.aggregated for line in strategy.records] == [True, False, True]
    assert [line.round for line in strategy.records] == [1, 2, 3]
    assert len(strategy.records[1].dropped) == 3
    everybody = list(clients.values())
    for module in SHAPES:
        expected = expected_sum(everybody, 1, module) + expected_sum(everybody, 3, module)
        assert relative_error(dense(strategy.state.cumulative, module), expected) < 1e-5
    # Clients begin the third round from the first one's directions, as if there had been no second.
    at, start = clients[8].starts[-1]
    assert (at, start.local.total_rank) == (3, 3 * len(SHAPES))


@pytest.mark.slow
@pytest.mark.parametrize("aggregator", [FedIt(), Florist(EnergyThreshold(1.0))])
def test_after_a_failed_round_clients_train_on_from_what_they_had(aggregator: Aggregator) -> None:
    clients = three()
    strategy, grid = between(clients, aggregator=aggregator)
    strategy.start(grid, num_rounds=1)
    grid.deliver = lambda message, reply: [] if message.metadata.message_type == TRAIN else [reply]
    strategy.start(grid, num_rounds=2)
    grid.deliver = lambda _message, reply: [reply]
    before = strategy.state
    strategy.start(grid, num_rounds=3)
    rules = Federation({"a": 2, "b": 3, "c": 4}, aggregator, SHAPES, 0)
    for client in clients.values():
        found, expected = client.starts[-1][1].local, rules.start(before, client.client_id).local
        assert found.total_rank > 0
        assert all(torch.equal(found[k].A, expected[k].A) and torch.equal(found[k].B, expected[k].B) for k in expected)


@pytest.mark.slow
def test_a_round_waits_for_the_clients_that_it_needs() -> None:
    clients = three()
    strategy, grid = between(clients, wait=30.0, min_replies=3)
    looks = {"left": 3}
    present = grid.get_node_ids

    class Flaky(MemoryGrid):
        def get_node_ids(self) -> list[int]:
            looks["left"] -= 1
            return [7] if 0 < looks["left"] < 3 and grid.nodes_of(TRAIN) else list(present())

    strategy.start(grid, num_rounds=1)
    grid.__class__ = Flaky
    looks["left"] = 3
    strategy.start(grid, num_rounds=2)
    assert [line.aggregated for line in strategy.records] == [True, True]


def test_with_nobody_there_a_round_fails_and_says_so() -> None:
    clients = three()
    strategy, grid = play(clients)
    grid.absent = {7, 8, 9}
    strategy._members.min_clients = 0
    strategy.start(grid, num_rounds=2)
    line = strategy.records[1]
    assert not line.aggregated
    assert {drop.reason for drop in line.dropped} == {"not connected when the round began"}


def test_more_replies_than_a_round_asks_clients_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"federation\.min_replies = 3: expected at most the 2 of 3 clients"):
        play(three(), min_replies=3, fraction=0.5)


@pytest.mark.slow
def test_clients_that_left_for_good_no_longer_raise_what_a_round_needs() -> None:
    clients = {**three(), 10: Light("d"), 11: Light("e")}
    strategy, grid = between(clients, min_clients=2)
    strategy.start(grid, num_rounds=1)
    grid.absent = {9, 10, 11}
    strategy.start(grid, num_rounds=6)
    # Of five, three must reply; of two, one.
    assert [line.aggregated for line in strategy.records] == [True, False, False, False, True, True]
    assert [len(line.dropped) for line in strategy.records] == [0, 3, 3, 3, 0, 0]
    grid.absent = set()
    strategy.start(grid, num_rounds=7)
    assert [client.client_id for client in strategy.records[-1].clients] == ["a", "b", "c", "d", "e"]
    some, all_five = [clients[7], clients[8]], list(clients.values())
    for module in SHAPES:
        expected = expected_sum(all_five, 1, module) + expected_sum(all_five, 7, module)
        expected += expected_sum(some, 5, module) + expected_sum(some, 6, module)
        assert relative_error(dense(strategy.state.cumulative, module), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("left", "aggregated"),
    [
        ({9, 10, 11}, [True, False, False, False, True, True]),  # of the three that remain members, two are there
        ({8, 9, 10, 11}, [True, *5 * [False]]),  # one site does not go on alone
    ],
)
def test_half_of_the_clients_that_were_waited_for_count_however_long(left: set[int], aggregated: list[bool]) -> None:
    clients = {**three(), 10: Light("d"), 11: Light("e")}
    strategy, grid = between(clients, min_clients=5)

    def deliver(message: Message, reply: Message) -> list[Message]:
        if of_type(message, TRAIN, node=11):
            grid.absent = left  # once the first round is under way
        return [reply]

    grid.deliver = deliver
    strategy.start(grid, num_rounds=6)
    assert [line.aggregated for line in strategy.records] == aggregated


# --- who is started anew


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "telling", "at_last"),
    [
        (Light("a", 2, 9), "expected 1 examples, as introduced, got 9", ["a", "b", "c"]),
        (Light("a", 4, 1), "expected a rank of at most 2, as introduced, got 4", ["a", "b", "c"]),
        (Light("z", 2, 1), "expected a reply of a, got one that says z", ["b", "c", "z"]),
        (Light("a", 2, 1, base="another"), "expected the base the base, as introduced, got another", ["b", "c"]),
        (Light("c", 2, 1), "expected a reply of a, got one that says c", ["b", "c"]),
    ],
)
@pytest.mark.parametrize("with_memory", [True, False])
def test_a_node_that_is_started_as_another_client_introduces_itself_anew(
    other: Light, telling: str, at_last: list[str], with_memory: bool
) -> None:
    clients = three()
    strategy, grid = play(clients)
    clients[7] = other
    if not with_memory:
        grid.forget(7)
    strategy.start(grid, num_rounds=3)
    second, third = strategy.records[1:]
    assert [client.client_id for client in second.clients] == ["b", "c"]
    assert [(drop.client_id, drop.reason) for drop in second.dropped] == [("a", telling)]
    assert [client.client_id for client in third.clients] == at_last
    if at_last == ["a", "b", "c"]:
        assert (third.clients[0].num_examples, third.clients[0].rank) == (other.num_examples, other.rank)
        assert not third.dropped


# --- who missed something


def absent_in(numbers: set[int], node: int, strategy: FloristStrategy, grid: MemoryGrid, rounds: int) -> None:
    for number in range(1, rounds + 1):
        grid.absent = {node} if number in numbers else set()
        strategy._members.min_clients = 2
        strategy.start(grid, num_rounds=number)
    grid.absent = set()


@pytest.mark.slow
@pytest.mark.parametrize("on_clients", [True, False])
def test_who_was_away_is_sent_what_it_missed_as_one_adapter(on_clients: bool) -> None:
    clients = three()
    strategy, grid = between(clients, evaluate_on_clients=on_clients)
    absent_in({2, 3, 4}, 7, strategy, grid, 6)
    everybody, others = list(clients.values()), [clients[8], clients[9]]
    assert_sum_of(strategy, [everybody, others, others, others, everybody, everybody])
    missed = [line.broadcast_bytes for line in strategy.records[1 if on_clients else 0 : 4]]
    (back,) = [client for client in strategy.records[4].clients if client.client_id == "a"]
    sent = back.download_bytes - (strategy.records[4].broadcast_bytes if on_clients else 0)
    assert 0 < sent < sum(missed)
    at, start = clients[7].starts[1]
    assert at == 5
    for module in SHAPES:
        expected = expected_sum(everybody, 1, module) + sum(
            (expected_sum(others, number, module) for number in (2, 3, 4)), torch.zeros(())
        )
        assert relative_error(dense(start.frozen, module), expected) < 1e-5
    # Its directions are the others', though the sum that it was sent does not show them.
    other = clients[9].starts[-2][1].local
    for module in SHAPES:
        assert relative_error(start.local[module].A, other[module].A[:2]) < 1e-5


@pytest.mark.slow
def test_in_linear_rounds_who_was_away_or_joins_derives_the_rows_of_the_others() -> None:
    clients = {7: Light("a", 2), 8: Light("b", 3), 9: Light("c", 5)}
    for client in clients.values():
        client.trained = Trained.B
    strategy, grid = between(clients, aggregator=LinearRounds(EnergyThreshold(1.0)), evaluate_on_clients=False)
    absent_in({2, 3, 4}, 7, strategy, grid, 6)
    assert [len(line.clients) for line in strategy.records] == [3, 2, 2, 2, 3, 3]
    assert not any(drop.client_id != "a" for line in strategy.records for drop in line.dropped)
    rounds = {name: {at: start.local for at, start in clients[node].starts} for node, name in ((7, "a"), (9, "c"))}
    for number in (5, 6):
        for module in SHAPES:
            assert relative_error(rounds["a"][number][module].A, rounds["c"][number][module].A[:2]) < 1e-6
    # What is added in a round is the weighted sum of B along the rows of the client that has the most of them.
    total = torch.zeros(SHAPES["layers.1.up"], dtype=torch.float64)
    for number in range(1, 7):
        there = [clients[node] for node in (7, 8, 9) if not (node == 7 and number in {2, 3, 4})]
        A = rounds["c"][number]["layers.1.up"].A.double()
        for client in there:
            B = trained_adapter(client, derive_seed(0, "training", number, client.client_id))["layers.1.up"].B
            total += B.double() @ A[: client.rank] / len(there)
    assert relative_error(dense(strategy.state.cumulative, "layers.1.up"), total) < 1e-5


def test_who_lost_its_memory_is_asked_once_more() -> None:
    clients = three()
    strategy, grid = play(clients, rounds=2)
    before = len(grid.nodes_of(TRAIN))
    grid.forget(7)
    strategy.start(grid, num_rounds=3)
    assert grid.nodes_of(TRAIN)[before:] == [7, 8, 9, 7]
    line = strategy.records[2]
    assert not line.dropped
    assert_sum_of(strategy, [list(clients.values())] * 3)
    # The whole adapter, bit for bit, beside the directions that it hides.
    at, start = clients[7].starts[-1]
    assert at == 3
    other = clients[9].starts[-1][1]
    for module in SHAPES:
        assert torch.equal(start.frozen[module].B, other.frozen[module].B)
        assert relative_error(start.local[module].A, other.local[module].A[:2]) < 1e-5
    sent = {client.client_id: client.download_bytes for client in line.clients}
    rows = 4 * sum(start.local[module].A.numel() for module in SHAPES)
    assert sent["a"] - sent["b"] == start.frozen.nbytes + rows


def test_bytes_of_a_download_that_did_not_fit_count_as_well() -> None:
    clients = three()
    strategy, grid = play(clients, rounds=1, evaluate_on_clients=False)
    grid.forget(7)
    strategy.start(grid, num_rounds=2)
    sent = {client.client_id: client.download_bytes for client in strategy.records[1].clients}
    assert sent["a"] == 2 * sent["b"]


def test_out_of_step_for_ever_is_asked_twice() -> None:
    clients = three()
    strategy, grid = play(clients, rounds=2, deliver=forging(lambda _: OutOfStep("a", -1)))
    assert grid.nodes_of(TRAIN).count(7) == 4
    for line in strategy.records:
        assert [drop.client_id for drop in line.dropped] == ["a"]


def test_out_of_step_twice_over_is_asked_again_once() -> None:
    def deliver(message: Message, reply: Message) -> list[Message]:
        once = forging(lambda _: OutOfStep("a", -1))(message, reply)
        return [*once, *once] if of_type(message, TRAIN) else once

    _, grid = play(three(), deliver=deliver)
    assert grid.nodes_of(TRAIN).count(7) == 2


def test_a_lost_reply_does_not_add_a_broadcast_twice() -> None:
    clients = three()
    strategy, grid = between(clients, evaluate_on_clients=False)
    strategy.start(grid, num_rounds=1)
    grid.deliver = replies()
    strategy.start(grid, num_rounds=2)
    grid.deliver = lambda _message, reply: [reply]
    strategy.start(grid, num_rounds=3)
    start = clients[7].starts[-1][1]
    expected = clients[9].starts[-1][1]
    for module in SHAPES:
        assert relative_error(dense(start.frozen, module), dense(expected.frozen, module)) < 1e-6


def test_who_joins_late_begins_with_the_global_adapter() -> None:
    clients = three()
    strategy, grid = play(clients, rounds=2)
    clients[10] = Light("late")
    grid.contexts[10] = MemoryGrid(app_of(clients), {10: {}}).contexts[10]
    strategy.start(grid, num_rounds=3)
    assert [client.client_id for client in strategy.records[2].clients] == ["a", "b", "c", "late"]
    at, start = clients[10].starts[0]
    assert at == 3
    expected = clients[9].starts[-1][1]
    for module in SHAPES:
        assert torch.equal(start.frozen[module].B, expected.frozen[module].B)
        assert relative_error(start.local[module].A, expected.local[module].A[:2]) < 1e-5


def test_a_client_that_returns_on_another_node_goes_on() -> None:
    clients = three()
    strategy, grid = play(clients)
    clients[17] = clients[7]
    grid.contexts[17] = MemoryGrid(app_of(clients), {17: {}}).contexts[17]
    grid.absent = {7}
    strategy.start(grid, num_rounds=2)
    assert [client.client_id for client in strategy.records[1].clients] == ["a", "b", "c"]
    assert_sum_of(strategy, [list(clients.values())[:3]] * 2)


# --- evaluation


def test_metrics_of_clients_are_averaged_by_their_examples() -> None:
    clients = three()
    for client, loss, held_out in zip(clients.values(), (1.0, 4.0, 9.0), (1, 2, 0), strict=True):
        client.metrics, client.held_out = {"loss": loss}, held_out
    strategy, _ = play(clients, rounds=1)
    assert strategy.records[0].metrics == {"loss": pytest.approx(3.0)}
    # They have the broadcast now: the next download is empty.
    assert strategy.state.holds == {"a": 1, "b": 1, "c": 1}
    for module in SHAPES:
        assert torch.equal(clients[9].evaluated[0][module].B, strategy.state.cumulative[module].B)


@pytest.mark.slow
def test_what_was_delivered_for_evaluation_is_not_sent_again() -> None:
    strategy, _ = play(three(), rounds=3)
    for line in strategy.records:
        assert {client.download_bytes for client in line.clients} == {line.broadcast_bytes}
    without, _ = play(three(), rounds=3, evaluate_on_clients=False)
    assert [line.download_bytes for line in without.records] == [
        0,
        *(3 * line.broadcast_bytes for line in without.records[:2]),
    ]


def test_who_fails_in_the_evaluation_alone_still_counts() -> None:
    clients = three()
    clients[8].held_out = 1

    def deliver(message: Message, reply: Message) -> list[Message]:
        return [unavailable(message)] if of_type(message, EVALUATE) else [reply]

    strategy, _ = play(clients, rounds=2, deliver=deliver)
    assert_sum_of(strategy, [list(clients.values())] * 2)
    for line in strategy.records:
        assert len(line.clients) == 3
        assert not line.dropped
        assert line.metrics == {"loss": 1.0}


@pytest.mark.parametrize(
    "change",
    [
        lambda said: replace(said, client_id="b"),
        lambda said: replace(said, holds=0),
        lambda _said: OutOfStep("a", -1),
    ],
)
def test_an_evaluation_that_does_not_fit_is_left_out(change: Change) -> None:
    clients = three()
    for client in clients.values():
        client.held_out, client.metrics = 1, {"loss": 100.0 if client.client_id == "a" else 1.0}
    strategy, _ = play(clients, deliver=forging(change, EVALUATE))
    assert strategy.records[0].metrics == {"loss": 1.0}


def test_held_out_examples_are_as_many_as_were_introduced() -> None:
    clients = three()
    for client in clients.values():
        client.held_out, client.metrics = 1, {"loss": 100.0 if client.client_id == "a" else 1.0}
    forged = forging(lambda said: replace(said, num_examples=10**18), EVALUATE)
    strategy, grid = play(clients, deliver=forged)
    assert strategy.records[0].metrics == {"loss": 1.0}
    assert len(strategy.records[0].clients) == 3
    # Started anew with other examples held out, it introduces itself anew, and counts again.
    clients[7].held_out, grid.deliver = 2, lambda _message, reply: [reply]
    strategy.start(grid, num_rounds=3)
    assert [line.metrics for line in strategy.records[1:]] == [{"loss": 1.0}, {"loss": pytest.approx(202 / 4)}]


def test_more_held_out_examples_than_a_client_may_claim_count_nowhere() -> None:
    clients = three()
    for client in clients.values():
        client.held_out, client.metrics = 1, {"loss": 1.0}
    clients[7].held_out, clients[7].metrics = 10**18, {"loss": 100.0}
    strategy, _ = play(clients, max_examples=10)
    assert strategy.records[0].metrics == {"loss": 1.0}


@pytest.mark.parametrize(
    ("guard", "refused"), [(None, ["a"]), (Guard.off(), []), (Guard(largest_norm=1e-9), ["a", "b", "c"])]
)
def test_a_guard_checks_what_it_is_told_to(guard: Guard | None, refused: list[str]) -> None:
    far = forging(lambda said: replace(said, adapter=said.adapter.map(lambda factor: factor.scaled(1e6))))
    strategy, _ = play(three(), rounds=1, deliver=far, guard=guard)
    assert sorted(drop.client_id for drop in strategy.records[0].dropped) == refused


def test_a_mean_passes_over_what_one_client_alone_names_and_what_is_absurd() -> None:
    found = weighted_mean(
        [
            Evaluation("a", 1, 1, ["accuracy of all", "loss", "x"], [1.0, -1e300, 3.0]),
            Evaluation("b", 1, 1, ["loss", "x"], [2.0, 1.0]),
            Evaluation("c", 1, 1, ["loss", "loss"], [4.0, 4.0]),
            Evaluation("d", 1, 0, ["accuracy of all"], [1.0]),
        ]
    )
    assert found == {"loss": pytest.approx(3.0), "x": pytest.approx(2.0)}
    assert weighted_mean([Evaluation("a", 1, 5, ["loss"], [2.0])]) == {"loss": 2.0}
    assert weighted_mean([]) == {}


def test_a_mean_passes_over_what_is_no_number() -> None:
    found = weighted_mean(
        [
            Evaluation("a", 1, 1, ["x", "y"], [1.0, math.nan]),
            Evaluation("b", 1, 3, ["x"], [5.0]),
            Evaluation("c", 1, 0, ["x", "z"], [9.0, 9.0]),
            Evaluation("d", 1, 9, ["x"], [math.inf]),
        ]
    )
    assert found == {"x": pytest.approx(4.0)}


def test_the_server_may_measure(tmp_path: Path) -> None:
    def norm(state: ServerState) -> dict[str, float]:
        return {"rank": float(state.cumulative.total_rank)}

    journal = Journal(tmp_path / "run", "florist")
    strategy, _ = play(three(), rounds=2, evaluate=norm, evaluate_on_clients=False, journal=journal)
    assert journal.directory.facts.initial == {"rank": 0.0}
    assert [line.metrics for line in journal.directory.records()] == [
        {"rank": float(line.cumulative_rank)} for line in strategy.records
    ]


# --- saved parameters


def with_heads() -> dict[int, Light]:
    clients = three()
    for client in clients.values():
        client.saved_parameters = {"head": torch.arange(3.0)}
    return clients


def test_heads_travel_and_are_averaged() -> None:
    clients = with_heads()
    strategy, grid = play(clients, rounds=2)
    assert torch.equal(strategy.state.saved_parameters["head"], torch.arange(3.0) + 2)
    assert grid.nodes_of(SAVED_PARAMETERS) == [7]


def test_first_values_come_from_whoever_has_them_whole() -> None:
    def deliver(message: Message, reply: Message) -> list[Message]:
        if message.metadata.message_type != SAVED_PARAMETERS:
            return [reply]
        node = message.metadata.dst_node_id
        if node == 7:
            return [unavailable(message)]
        if node == 8:
            del reply.content["saved_parameters"]
        return [reply]

    strategy, grid = play(with_heads(), deliver=deliver)
    assert grid.nodes_of(SAVED_PARAMETERS) == [7, 8, 9]
    assert torch.equal(strategy.state.saved_parameters["head"], torch.arange(3.0) + 1)


def test_no_first_values_at_all_is_an_error() -> None:
    clients = with_heads()
    clients[8].saved_parameters = {"head": torch.tensor([math.nan])}

    def deliver(message: Message, reply: Message) -> list[Message]:
        return (
            [] if message.metadata.message_type == SAVED_PARAMETERS and message.metadata.dst_node_id != 8 else [reply]
        )

    with pytest.raises(InvalidUpdateError, match="from one of 3 clients, got none: b: head holds NaN or inf"):
        play(clients, deliver=deliver)


# --- the journal


def bits(state: ServerState) -> dict[str, bytes]:
    return {name: array.data for name, array in adapter_to_arrays(state.cumulative).items()}


@pytest.mark.slow
@pytest.mark.parametrize("local_init", [Aligned(), Warm()])
def test_a_run_resumed_after_any_round_ends_the_same(local_init: Aligned | Warm, tmp_path: Path) -> None:
    whole, _ = play(three(), rounds=3, local_init=local_init)
    for stop in range(3):
        journal = Journal(tmp_path / f"run-{stop}", "florist")
        play(three(), rounds=stop, local_init=local_init, journal=journal)
        # Another run of Flower: other node ids, and nobody holds anything any more.
        clients = {node + 20: client for node, client in three().items()}
        resumed, _ = play(clients, rounds=3, local_init=local_init, journal=journal)
        assert bits(resumed.state) == bits(whole.state)
        assert [line.round for line in resumed.records] == [1, 2, 3]
        assert len(journal.directory.records()) == 3
        assert len(clients[27].starts) == 3 - stop


@pytest.mark.slow
def test_a_run_killed_between_save_and_amendment_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = play(three(), rounds=3)
    journal = Journal(tmp_path / "run", "florist")
    clients = three()
    strategy, grid = between(clients, journal=journal)

    def killed(self: Journal, state: ServerState, record: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "amend", killed)
        with pytest.raises(KeyboardInterrupt):
            strategy.start(grid, num_rounds=3)
    assert len(journal.directory.records()) == 1
    again = FloristStrategy(Florist(EnergyThreshold(1.0)), wait=0.1, journal=journal)
    again.start(grid, num_rounds=3)  # the nodes have lived on, and know more than was written down
    assert bits(again.state) == bits(whole.state)
    assert [len(line.clients) for line in again.records] == [3, 3, 3]
    assert grid.nodes_of(TRAIN) == [7, 8, 9] * 3


def test_a_server_killed_before_it_evaluates_does_so_when_it_resumes(tmp_path: Path) -> None:
    def rank(state: ServerState) -> dict[str, float]:
        return {"rank": float(state.cumulative.total_rank)}

    def killed(state: ServerState) -> dict[str, float]:
        if state.round_number == 2:
            raise KeyboardInterrupt
        return rank(state)

    journal = Journal(tmp_path / "run", "florist")
    with pytest.raises(KeyboardInterrupt):
        play(three(), rounds=3, evaluate=killed, evaluate_on_clients=False, journal=journal)
    assert [dict(line.metrics) for line in journal.directory.records()][1:] == [{}]
    for rounds in (2, 3):
        play(three(), rounds=rounds, evaluate=rank, evaluate_on_clients=False, journal=journal)
        lines = journal.directory.records()
        assert len(lines) == rounds
        assert [line.metrics for line in lines] == [{"rank": float(line.cumulative_rank)} for line in lines]


def test_a_message_is_hashed_once_a_side(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []

    def counting(array_records: Iterable[ArrayRecord]) -> str:
        counted.append(1)
        return digest(array_records)

    monkeypatch.setattr(envelope, "digest", counting)
    _, grid = play(three(), rounds=2)
    messages = sum(message.metadata.message_type != SAVED_PARAMETERS for message in grid.sent)
    hellos = len(grid.nodes_of(HELLO))  # which have nothing to hash on their way to the client
    assert len(counted) == 2 * (2 * messages - hellos)


def test_a_finished_run_has_no_rounds_to_go(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", "florist")
    play(three(), rounds=2, journal=journal)
    strategy, grid = play(three(), rounds=2, journal=journal)
    assert grid.nodes_of(TRAIN) == []
    assert strategy.state.round_number == 2


def test_heads_are_resumed_with(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", "florist")
    play(with_heads(), rounds=2, journal=journal)
    strategy, grid = play(with_heads(), rounds=3, journal=journal)
    assert torch.equal(strategy.state.saved_parameters["head"], torch.arange(3.0) + 3)
    assert grid.nodes_of(SAVED_PARAMETERS) == []


def test_a_run_is_not_resumed_on_another_base(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", "florist")
    play(three(), journal=journal)
    other = {node: replace(client, base="another") for node, client in three().items()}
    with pytest.raises(TooFewClientsError, match="a: expected the base the base, got another"):
        play(other, rounds=2, journal=journal)
    with pytest.raises(ConfigurationError, match=r"expected the base the base, which the run .*, got another"):
        play(other, rounds=2, journal=journal, reference=Agreement("another", SHAPES))
    assert len(journal.directory.records()) == 1


def test_a_run_is_not_resumed_with_another_method(tmp_path: Path) -> None:
    play(three(), journal=Journal(tmp_path / "run", "florist"))
    with pytest.raises(ConfigurationError, match=r"expected the method 'florist', .* got 'fedit'"):
        play(three(), rounds=2, aggregator=FedIt(), journal=Journal(tmp_path / "run", "fedit"))


# --- the rest


def test_a_start_that_clients_cannot_be_told_is_refused() -> None:
    with pytest.raises(InvalidUpdateError, match="expected a local_init of"):
        FloristStrategy(Florist(EnergyThreshold(1.0)), local_init=Continued())


def test_an_update_without_a_module_counts_as_zero_there() -> None:
    clients = three()

    def without(upload: Upload) -> Upload:
        kept: dict[str, LoraFactor] = {name: factor for name, factor in upload.adapter.items() if "up" not in name}
        return replace(upload, adapter=AdapterState.of(kept))

    strategy, _ = play(clients, deliver=forging(without))
    assert len(strategy.records[0].clients) == 3
    others = [clients[8], clients[9]]
    expected = expected_sum(others, 1, "layers.1.up") * 7 / 8
    assert relative_error(dense(strategy.state.cumulative, "layers.1.up"), expected) < 1e-5


@pytest.mark.slow
def test_two_servers_in_one_journal_are_kept_apart(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", "florist")
    play(three(), rounds=1, journal=journal)
    with sole_process(journal.path), pytest.raises(DirectoryInUseError, match="at work in it"):
        play(three(), rounds=2, journal=journal)
