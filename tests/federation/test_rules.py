import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from florist.aggregation import FedEx, FedIt, FedSvd, FfaLora, FlexLora, Flora, Florist, FullFineTuning, lossless_sum
from florist.factors import AdapterState, LoraFactor
from florist.federation.broadcasts import Broadcasts
from florist.federation.local_init import Aligned, Fresh, LocalInit, Warm
from florist.federation.recording import LocalWork, round_record
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.linalg import ThinSvd, WeightedFactor, decompose
from florist.ranks import EnergyThreshold
from florist.rounds import NO_ADAPTER, Aggregator, ClientUpdate
from tests.builders import SHAPES, adapter, dense_sum, relative_error, update, with_shared_rows

CLIENTS = tuple(f"client_{k}" for k in range(10))


def rules(**changes: object) -> Federation:
    settings = {
        "client_ranks": dict.fromkeys(CLIENTS, 8),
        "aggregator": Florist(EnergyThreshold(1.0)),
        "shapes": SHAPES,
        "seed": 0,
        "min_replies": 1,
    }
    return Federation(**{**settings, **changes})


def states_of(federation: Federation, rounds: list[list[str]]) -> list[ServerState]:
    """After each of the rounds in which the named clients reply, each with an update of its own."""
    states = [ServerState.initial()]
    for number, clients in enumerate(rounds, start=1):
        updates = [
            update(name, adapter(2, seed=100 * number + CLIENTS.index(name)), round_number=number) for name in clients
        ]
        states.append(federation.close_round(states[-1], updates).state)
    return states[1:]


def play(federation: Federation, rounds: list[list[str]]) -> ServerState:
    return states_of(federation, rounds)[-1]


def dense(held: AdapterState, module: str) -> torch.Tensor:
    if module in held:
        return held[module].delta_weight()
    return torch.zeros(SHAPES[module], dtype=torch.float64)


@given(fraction=st.floats(0.01, 1.0), clients=st.integers(1, 40))
def test_a_round_asks_the_fraction_rounded_up(fraction: float, clients: int) -> None:
    federation = rules(client_ranks={str(k): 8 for k in range(clients)}, fraction=fraction)
    asked = federation.participants(1)
    assert len(asked) == len(set(asked)) == max(1, math.ceil(round(fraction * clients, 9)))


def test_a_tenth_of_thirty_is_three() -> None:
    assert rules(client_ranks={str(k): 8 for k in range(30)}, fraction=0.1).clients_per_round == 3


def test_sampling_depends_on_seed_and_round_alone() -> None:
    federation = rules(fraction=0.3)
    rounds = [federation.participants(number) for number in range(1, 20)]
    assert rounds == [
        rules(fraction=0.3, client_ranks=dict.fromkeys(CLIENTS[::-1], 8)).participants(n) for n in range(1, 20)
    ]
    assert len(set(rounds)) > 5
    assert set().union(*rounds) == set(CLIENTS)
    assert rounds != [rules(fraction=0.3, seed=1).participants(n) for n in range(1, 20)]


def test_the_global_adapter_is_the_sum_of_all_broadcasts() -> None:
    federation = rules()
    states = states_of(federation, [["client_0", "client_1"], ["client_2"], ["client_0", "client_3"]])
    assert states[-1].round_number == 3
    for module in SHAPES:
        total = sum((dense(state.broadcasts.last, module) for state in states), start=torch.zeros(()))
        assert relative_error(dense(states[-1].cumulative, module), total) < 1e-12


def test_what_clients_downloaded_always_adds_up_to_the_global_adapter() -> None:
    federation = rules()
    state = ServerState.initial()
    held = {name: AdapterState.of({}) for name in CLIENTS}
    for number, clients in enumerate([[0, 1], [2, 3], [0], [1, 2], [3, 4, 0]], start=1):
        names = [CLIENTS[k] for k in clients]
        for name in names:
            held[name] = lossless_sum([held[name], federation.download(state, name).adapter])
            for module in SHAPES:
                found, expected = dense(held[name], module), dense(state.cumulative, module)
                assert relative_error(found, expected) < 1e-12 or float(expected.norm()) == float(found.norm()) == 0
        updates = [update(name, adapter(2, 10 * number + k), round_number=number) for k, name in enumerate(names)]
        closed = federation.close_round(state, updates)
        assert closed.broadcast is not None
        for name in names:
            held[name] = lossless_sum([held[name], closed.broadcast.shared])
        state = closed.state


def test_a_client_that_took_part_lacks_nothing() -> None:
    federation = rules()
    state = play(federation, [["client_0"]])
    assert federation.download(state, "client_0").nbytes == 0


def test_a_late_joiner_gets_one_adapter_no_larger_than_what_it_missed() -> None:
    federation = rules()
    states = states_of(federation, [["client_0", "client_1"]] * 6)
    state = states[-1]
    catch_up = federation.download(state, "client_9")
    assert catch_up.nbytes < sum(each.broadcasts.last.nbytes for each in states)
    for module in SHAPES:
        assert relative_error(dense(catch_up.adapter, module), dense(state.cumulative, module)) < 1e-12


def test_saved_parameters_come_with_the_download_of_a_new_client() -> None:
    head = {"head.weight": torch.ones(3)}
    federation, state = rules(), ServerState.initial(head)
    assert federation.download(state, "client_0").nbytes == 12
    updates = [ClientUpdate("client_0", adapter(2, 1), 1, 1, head)]
    moved = federation.close_round(state, updates).state
    assert federation.download(moved, "client_0").nbytes == 0
    assert federation.download(moved, "client_1").saved_parameters.keys() == {"head.weight"}


def broken(value: float) -> AdapterState:
    factors = dict(adapter(2, 5))
    factors["layers.1.up"].A[0, 0] = value
    return AdapterState.of(factors)


REFUSED = {
    "stranger": (update("stranger", adapter(2, 1)), "not a client of this federation"),
    "late": (update("client_1", adapter(2, 1), round_number=7), "expected an update of round 1, got one of round 7"),
    "no examples": (update("client_1", adapter(2, 1), num_examples=0), "positive whole number of examples, got 0"),
    "nan": (update("client_1", broken(math.nan)), "layers.1.up holds NaN or inf"),
    "inf": (update("client_1", broken(math.inf)), "layers.1.up holds NaN or inf"),
    "shape": (update("client_1", adapter(2, 1, shapes={"layers.1.up": (9, 20)})), "expected the shape (20, 9)"),
    "rank": (update("client_1", adapter(9, 1)), "expected at most the client's rank 8, got 9"),
    "module": (update("client_1", adapter(2, 1, shapes={"elsewhere": (4, 4)})), "elsewhere is not a module"),
    "unexpected head": (
        ClientUpdate("client_1", adapter(2, 1), 1, 1, {"head.bias": torch.zeros(1)}),
        "expected the saved parameters [], got ['head.bias']",
    ),
}


@pytest.mark.parametrize(("bad", "reason"), REFUSED.values(), ids=REFUSED)
def test_an_update_that_cannot_count_is_dropped_with_its_reason(bad: ClientUpdate, reason: str) -> None:
    good = update("client_0", adapter(3, 1))
    closed = rules().close_round(ServerState.initial(), [bad, good])
    assert [drop.client_id for drop in closed.dropped] == [bad.client_id]
    assert reason in closed.dropped[0].reason
    assert [counted.client_id for counted in closed.counted] == ["client_0"]
    for module in SHAPES:  # weights are those of the clients that count
        assert relative_error(dense(closed.state.cumulative, module), good.adapter[module].delta_weight()) < 1e-12
    assert bad.client_id not in closed.state.holds


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ({"head.bias": torch.tensor([math.nan])}, "head.bias holds NaN or inf"),
        ({"head.bias": torch.zeros(2)}, "head.bias: expected (1,), got (2,)"),
        ({}, "expected the saved parameters ['head.bias'], got []"),
    ],
)
def test_a_head_that_cannot_be_averaged_is_dropped(head: dict[str, torch.Tensor], reason: str) -> None:
    state = ServerState.initial({"head.bias": torch.zeros(1)})
    good = ClientUpdate("client_0", adapter(2, 1), 1, 1, {"head.bias": torch.ones(1)})
    closed = rules().close_round(state, [good, ClientUpdate("client_1", adapter(2, 1), 1, 1, head)])
    assert [drop.reason for drop in closed.dropped] == [reason]
    assert torch.equal(closed.state.saved_parameters["head.bias"], torch.ones(1))


def test_a_reply_that_comes_twice_counts_once() -> None:
    reply = update("client_0", adapter(2, 1))
    once = rules().close_round(ServerState.initial(), [reply])
    twice = rules().close_round(ServerState.initial(), [reply, reply])
    assert [drop.reason for drop in twice.dropped] == ["a second update in one round; the first counts"]
    for module in SHAPES:
        assert torch.equal(dense(once.state.cumulative, module), dense(twice.state.cumulative, module))


def test_a_round_with_too_few_replies_changes_nothing_but_its_number() -> None:
    federation = rules(min_replies=2)
    before = play(rules(), [["client_0", "client_1"]])
    closed = federation.close_round(before, [update("client_0", adapter(2, 1), round_number=2)])
    assert closed.broadcast is None
    assert closed.state.cumulative is before.cumulative
    assert closed.state.holds == before.holds
    assert closed.state.round_number == 2
    line = round_record(closed, {"client_0": LocalWork(download_bytes=10, loss=1.0, seconds=1.0)}, {}, {})
    assert not line.aggregated
    assert line.total_rank == 0


def test_by_default_half_of_the_asked_clients_must_reply() -> None:
    assert rules(min_replies=None).required_replies == 5
    assert rules(min_replies=None, fraction=0.3).required_replies == 2
    assert rules(min_replies=None, client_ranks={"a": 8}).required_replies == 1


def test_the_record_counts_what_was_sent_to_clients_that_were_then_dropped() -> None:
    federation = rules()
    closed = federation.close_round(
        ServerState.initial(), [update("client_0", adapter(2, 1)), update("client_1", broken(math.nan))]
    )
    work = {name: LocalWork(download_bytes=1000, loss=0.5, seconds=2.0) for name in ("client_0", "client_1")}
    line = round_record(closed, work, {"loss": 1.0}, {"total": 3.0})
    assert closed.broadcast is not None
    broadcast_bytes = closed.broadcast.certificate.bytes_out
    assert line.broadcast_bytes == broadcast_bytes == closed.broadcast.shared.nbytes
    assert line.download_bytes == 2000 + broadcast_bytes
    assert line.upload_bytes == line.stack_bytes == adapter(2, 1).nbytes
    assert line.clients[0].download_bytes == 1000 + broadcast_bytes
    assert (line.total_rank, line.input_rank) == (6, 6)


def test_a_module_factor_may_be_missing_from_an_update() -> None:
    partial = AdapterState.of({"layers.1.up": LoraFactor(torch.ones(20, 1), torch.ones(1, 9))})
    closed = rules().close_round(ServerState.initial(), [update("client_0", partial)])
    assert list(closed.state.cumulative) == ["layers.1.up"]


# --- what the server forgets


def test_what_no_client_lacks_any_more_is_forgotten() -> None:
    states = states_of(rules(), [["client_0", "client_1"], ["client_1"], ["client_1"], ["client_0"], ["client_0"]])
    # Client 0 lacks rounds 2 and 3 until it takes part in round 4; client 1 lacks what came after round 3.
    assert [list(state.broadcasts) for state in states] == [[1], [2], [2, 3], [4], [4, 5]]
    assert [state.broadcasts.forgotten for state in states] == [0, 1, 1, 3, 3]
    assert [state.latest for state in states] == [1, 2, 3, 4, 5]


def test_failed_rounds_leave_the_last_broadcast() -> None:
    federation = rules(catch_up_rounds=2)
    state = play(federation, [["client_0"], ["client_1"]])
    for _ in range(5):
        state = federation.close_round(state, []).state
    assert list(state.broadcasts) == [2]
    state = federation.close_round(state, [update("client_1", adapter(2, 1), round_number=8)]).state
    assert list(state.broadcasts) == [8]
    assert federation.download(state, "client_0").replaces


@pytest.mark.parametrize("local_init", [Fresh(), Aligned()])
def test_who_was_away_for_longer_than_the_bound_is_sent_the_whole_adapter(local_init: LocalInit) -> None:
    federation = rules(catch_up_rounds=3, local_init=local_init)
    away = [["client_0", "client_1"], *[["client_1"]] * 3]
    state = play(federation, away)
    within = federation.download(state, "client_0")
    assert (within.replaces, list(state.broadcasts)) == (False, [2, 3, 4])
    state = play(federation, [*away, ["client_1"]])
    beyond = federation.download(state, "client_0")
    assert (beyond.replaces, list(state.broadcasts)) == (True, [3, 4, 5])
    assert beyond.adapter is state.cumulative
    rows = sum(factor.A.nbytes for factor in beyond.directions.values())
    assert beyond.nbytes == state.cumulative.nbytes + rows
    assert bool(rows) == (local_init == Aligned())


@pytest.mark.slow
def test_the_state_does_not_grow_with_the_rounds() -> None:
    federation = rules(catch_up_rounds=4)
    states = states_of(federation, [["client_0"], *[["client_1", "client_2"]] * 30])
    assert max(len(state.broadcasts) for state in states) == 4

    def nbytes(state: ServerState) -> int:
        return state.cumulative.nbytes + sum(each.nbytes for each in state.broadcasts.values())

    assert nbytes(states[-1]) == nbytes(states[10])


def test_forgotten_broadcasts_have_no_sum() -> None:
    broadcasts = Broadcasts({4: adapter(2, 4), 5: adapter(2, 5)}, forgotten=3)
    assert broadcasts.missed_since(2) is None
    with pytest.raises(ValueError, match="expected a round from 3 on, got 2"):
        broadcasts.sum_since(2)
    assert broadcasts.sum_since(4) is broadcasts[5]
    assert not broadcasts.sum_since(5)


# --- work that is done once


@pytest.fixture
def decompositions(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """An entry for every module that is decomposed outside of the aggregation method."""
    done: list[None] = []

    def counted(parts: Sequence[WeightedFactor], **options: float) -> ThinSvd:
        done.append(None)
        return decompose(parts, **options)

    for module in ("florist.aggregation.weighted_sum", "florist.federation.broadcasts"):
        monkeypatch.setattr(f"{module}.decompose", counted)
    return done


def test_clients_share_what_is_decomposed_for_them(decompositions: list[None]) -> None:
    federation = rules(client_ranks=dict.fromkeys(CLIENTS, 8) | {"client_3": 2})
    state = play(federation, [list(CLIENTS), ["client_0"], ["client_0"], ["client_0", "client_1"]])
    decompositions.clear()
    # Clients 2 to 9 miss rounds 2 to 4: one sum, and the directions of the last broadcast.
    for client_id in CLIENTS:
        federation.start(state, client_id)
        federation.download(state, client_id)
    assert len(decompositions) == 2 * len(SHAPES)


def test_the_global_adapter_is_computed_once_a_state(decompositions: list[None]) -> None:
    federation = rules(aggregator=FedIt())
    closed = federation.close_round(ServerState.initial(), [update("client_0", adapter(2, 1))])
    decompositions.clear()
    round_record(closed, {"client_0": LocalWork(0, 0.0, 0.0)}, {}, {})
    told = federation.with_holds(closed.state, {"client_0": 1})
    assert told.global_adapter is closed.state.global_adapter
    assert len(decompositions) == len(SHAPES)


# --- methods whose broadcast is trained on

UNLIKE = {"client_0": 2, "client_1": 4, "client_2": 8, "client_3": 8}
CONTINUING = {"fedit": FedIt(), "flexlora": FlexLora(8), "fedex": FedEx(), "ffa": FfaLora()}
continuing = pytest.mark.parametrize("aggregator", CONTINUING.values(), ids=CONTINUING)


def replies(clients: list[str], number: int) -> list[ClientUpdate]:
    """Of each client's own rank, with rows of A that FFA-LoRA takes as well."""
    return [
        update(name, with_shared_rows(UNLIKE[name], seed=100 * number + k), num_examples=k + 1, round_number=number)
        for k, name in enumerate(clients)
    ]


def continue_twice(aggregator: Aggregator) -> tuple[Federation, list[ServerState]]:
    federation = rules(client_ranks=UNLIKE, aggregator=aggregator)
    states = [ServerState.initial()]
    for number, clients in enumerate([["client_0", "client_2"], ["client_1", "client_2"]], start=1):
        states.append(federation.close_round(states[-1], replies(clients, number)).state)
    return federation, states


@continuing
def test_the_global_model_is_what_was_added_and_the_latest_that_is_continued(aggregator: Aggregator) -> None:
    _, states = continue_twice(aggregator)
    for module in SHAPES:
        expected = dense(states[2].cumulative, module) + dense(states[2].continued, module)
        assert relative_error(dense(states[2].global_adapter, module), expected) < 1e-12
        added = sum((dense(state.broadcasts.last, module) for state in states[1:]), start=torch.zeros(()))
        if float(added.norm()):
            assert relative_error(dense(states[2].cumulative, module), added) < 1e-12


def test_exact_methods_end_a_round_at_the_weighted_sum() -> None:
    for aggregator in (FlexLora(12), FedEx(), FfaLora()):
        _, states = continue_twice(aggregator)
        last = replies(["client_1", "client_2"], 2)
        for module in SHAPES:
            found = dense(states[2].broadcasts[2], module) + dense(states[2].continued, module)
            assert relative_error(found, dense_sum(last, module)) < 1e-12


@continuing
def test_every_client_starts_from_a_cut_of_its_own(aggregator: Aggregator) -> None:
    # In the field, ranks 4, 8 and 16 came back as 16, 16 and 16: one dictionary was shared, saved by position.
    federation, states = continue_twice(aggregator)
    before = {name: factor.rank for name, factor in states[2].continued.items()}
    for client_id, rank in UNLIKE.items():
        start = federation.start(states[2], client_id)
        assert start.frozen is states[2].cumulative
        for module, factor in start.local.items():
            assert factor.rank == min(rank, before[module])
            assert torch.equal(factor.A, states[2].continued[module].A[:rank])
    assert {name: factor.rank for name, factor in states[2].continued.items()} == before


@continuing
def test_a_client_downloads_its_cut_of_the_latest_and_nothing_that_it_knows(aggregator: Aggregator) -> None:
    federation, states = continue_twice(aggregator)
    state, work = states[2], aggregator.work
    added = lossless_sum([each.broadcasts.last for each in states[1:]]).nbytes
    assert federation.download(state, "client_1").nbytes == 0  # was in the last round
    for client_id, missed in (("client_0", state.broadcasts[2].nbytes), ("client_3", added)):
        lacking = federation.download(state, client_id)
        own = federation.start(state, client_id).local
        assert {name: f.rank for name, f in lacking.continued.items()} == {name: f.rank for name, f in own.items()}
        assert lacking.nbytes == missed + work.sent_bytes(own)
    halves = 8 * sum(min(8, f.rank) * f.B.shape[0] for f in state.continued.values())
    whole = 8 * sum(min(8, f.rank) * (f.B.shape[0] + f.A.shape[1]) for f in state.continued.values())
    assert work.sent_bytes(state.continued) == (halves if aggregator == FfaLora() else whole)


@continuing
def test_at_the_end_of_a_round_each_is_sent_its_own(aggregator: Aggregator) -> None:
    federation = rules(client_ranks=UNLIKE, aggregator=aggregator)
    sent = replies(["client_0", "client_2"], 1)
    closed = federation.close_round(ServerState.initial(), sent)
    assert closed.broadcast is not None
    assert closed.deliveries.keys() == {"client_0", "client_2"}
    for client_id, delivery in closed.deliveries.items():
        ranks = {factor.rank for factor in delivery.continued.values()}
        assert max(ranks) <= UNLIKE[client_id]
        assert delivery.adapter is closed.broadcast.shared
    assert closed.deliveries["client_2"].nbytes == closed.broadcast.certificate.bytes_out
    work = {client_id: LocalWork(0, 0.0, 0.0) for client_id in closed.deliveries}
    line = round_record(closed, work, {}, {})
    assert {c.client_id: c.download_bytes for c in line.clients} == {c: d.nbytes for c, d in closed.deliveries.items()}
    assert line.download_bytes < 2 * line.broadcast_bytes
    assert line.cumulative_rank == closed.state.global_adapter.total_rank > 0
    assert [c.upload_bytes for c in line.clients] == [aggregator.work.sent_bytes(u.adapter) for u in sent]
    assert line.stack_bytes == sum(u.nbytes for u in sent)


@continuing
def test_a_round_with_too_few_replies_leaves_what_is_continued(aggregator: Aggregator) -> None:
    _, states = continue_twice(aggregator)
    strict = rules(client_ranks=UNLIKE, aggregator=aggregator, min_replies=2)
    closed = strict.close_round(states[2], replies(["client_0"], 3))
    assert closed.broadcast is None
    assert closed.state.continued is states[2].continued
    assert not closed.deliveries


# --- how local adapters start

INITS = {"fresh": Fresh(), "aligned": Aligned(), "warm": Warm()}
every_init = pytest.mark.parametrize("local_init", INITS.values(), ids=INITS)


@every_init
@pytest.mark.parametrize("aggregator", [Florist(EnergyThreshold(1.0)), Flora()])
def test_what_clients_trained_is_added_and_nothing_is_lost(aggregator: Aggregator, local_init: LocalInit) -> None:
    federation = rules(client_ranks=UNLIKE, aggregator=aggregator, local_init=local_init)
    state = federation.close_round(ServerState.initial(), replies(["client_0", "client_2"], 1)).state
    second = replies(["client_0", "client_1", "client_2"], 2)
    moved = federation.close_round(state, second).state
    weights = {u.client_id: u.num_examples / sum(v.num_examples for v in second) for u in second}
    for module in SHAPES:
        # sum_k w_k (what client k held frozen + what it uploaded)
        expected = sum(
            weights[u.client_id]
            * (dense(federation.start(state, u.client_id).frozen, module) + u.adapter[module].delta_weight())
            for u in second
        )
        assert relative_error(dense(moved.cumulative, module), expected) < 1e-12


def test_a_client_that_did_not_train_leaves_a_warm_global_adapter_as_it_was() -> None:
    federation = rules(client_ranks=UNLIKE, local_init=Warm())
    state = federation.close_round(ServerState.initial(), replies(["client_1", "client_2"], 1)).state
    idle = [update(c, federation.start(state, c).local, round_number=2) for c in ("client_0", "client_1")]
    moved = federation.close_round(state, idle).state
    for module in SHAPES:
        assert relative_error(dense(moved.cumulative, module), dense(state.cumulative, module)) < 1e-14


def test_the_uploads_of_a_warm_start_count_as_they_were_sent() -> None:
    federation = rules(client_ranks=UNLIKE, local_init=Warm())
    state = federation.close_round(ServerState.initial(), replies(["client_1", "client_2"], 1)).state
    second = replies(["client_0", "client_2"], 2)
    closed = federation.close_round(state, second)
    line = round_record(closed, {u.client_id: LocalWork(0, 0.0, 0.0) for u in second}, {}, {})
    assert line.input_rank == (2 + 8) * len(SHAPES)
    assert line.upload_bytes == line.stack_bytes == sum(u.nbytes for u in second)
    assert line.clients[0].rank == 2


@continuing
@every_init
def test_where_a_method_continues_the_start_is_its_own(aggregator: Aggregator, local_init: LocalInit) -> None:
    federation, states = continue_twice(aggregator)
    other = rules(client_ranks=UNLIKE, aggregator=aggregator, local_init=local_init)
    updates = replies(["client_0", "client_3"], 3)
    first, second = federation.close_round(states[2], updates).state, other.close_round(states[2], updates).state
    for module in SHAPES:
        assert torch.equal(dense(first.continued, module), dense(second.continued, module))
        assert torch.equal(other.start(states[2], "client_0").local[module].A, states[2].continued[module].A[:2])


def test_random_rows_depend_on_the_seed_the_round_and_where_asked_the_client() -> None:
    shared, own = rules(), rules(shared_init=False)
    assert shared.local_seed(1, "client_0") == shared.local_seed(1, "client_1") == rules().local_seed(1, "client_0")
    assert shared.local_seed(1, "client_0") != shared.local_seed(2, "client_0")
    assert shared.local_seed(1, "client_0") != rules(seed=1).local_seed(1, "client_0")
    assert own.local_seed(1, "client_0") != own.local_seed(1, "client_1")


@pytest.mark.parametrize("aggregator", [FedIt(), FedEx(), FfaLora(), FedSvd()])
def test_methods_that_average_halves_apart_share_the_rows_in_any_case(aggregator: Aggregator) -> None:
    federation = rules(aggregator=aggregator, shared_init=False)
    assert federation.local_seed(1, "client_0") == federation.local_seed(1, "client_1")
    same_in_every_round = federation.local_seed(1, "client_0") == federation.local_seed(2, "client_0")
    assert same_in_every_round == (aggregator == FfaLora())


def test_who_missed_several_broadcasts_is_sent_the_directions_of_the_last() -> None:
    aligned = rules(client_ranks=UNLIKE, local_init=Aligned())
    state = ServerState.initial()
    for number in (1, 2):
        state = aligned.close_round(state, replies(["client_1", "client_2"][: 3 - number], number)).state
    new = aligned.download(state, "client_0")
    fresh = rules(client_ranks=UNLIKE, local_init=Fresh()).download(state, "client_0")
    assert {name: f.rank for name, f in new.directions.items()} == dict.fromkeys(SHAPES, 2)
    assert new.nbytes == fresh.nbytes + 2 * 8 * sum(n for _, n in SHAPES.values())
    # One that missed the last alone has it.
    assert not aligned.download(state, "client_2").directions
    assert aligned.download(state, "client_2").nbytes == state.broadcasts[2].nbytes


# --- full fine-tuning


def test_whole_weights_are_sent_once_a_round_has_changed_them() -> None:
    before = {"layers.1.up.weight": torch.zeros(20, 9), "head.weight": torch.zeros(3)}
    federation = rules(aggregator=FullFineTuning(), shapes={"layers.1.up": (20, 9)})
    state = ServerState.initial(before)
    # Everybody has the base; a head starts at random.
    assert federation.download(state, "client_0").saved_parameters.keys() == {"head.weight"}
    trained = {name: tensor + 1 for name, tensor in before.items()}
    closed = federation.close_round(state, [ClientUpdate("client_0", NO_ADAPTER, 4, 1, trained)])
    assert closed.upload_bytes == {"client_0": 4 * (180 + 3)}
    assert closed.deliveries["client_0"].nbytes == 4 * (180 + 3)
    assert federation.download(closed.state, "client_0").nbytes == 0
    assert federation.download(closed.state, "client_1").nbytes == 4 * (180 + 3)
    assert not closed.state.global_adapter
    line = round_record(closed, {"client_0": LocalWork(12, 0.0, 0.0)}, {}, {})
    assert (line.total_rank, line.input_rank, line.cumulative_rank, line.relative_error) == (0, 0, 0, 0.0)
    assert line.broadcast_bytes == 4 * (180 + 3)
