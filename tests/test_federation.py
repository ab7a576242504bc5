import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from florist.aggregation import Florist, lossless_sum
from florist.factors import AdapterState, LoraFactor
from florist.federation import Federation, LocalWork, record
from florist.ranks import EnergyThreshold
from florist.rounds import ClientUpdate, ServerState
from tests.builders import SHAPES, adapter, relative_error, update

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


def play(federation: Federation, rounds: list[list[str]]) -> ServerState:
    """Rounds in which the named clients reply, each with an update of its own."""
    state = ServerState.initial()
    for number, clients in enumerate(rounds, start=1):
        updates = [
            update(name, adapter(2, seed=100 * number + CLIENTS.index(name)), round_number=number) for name in clients
        ]
        state = federation.close_round(state, updates).state
    return state


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
    state = play(federation, [["client_0", "client_1"], ["client_2"], ["client_0", "client_3"]])
    assert state.round_number == 3
    for module in SHAPES:
        total = sum((dense(b, module) for b in state.broadcasts.values()), start=torch.zeros(()))
        assert relative_error(dense(state.cumulative, module), total) < 1e-12


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
    everybody = [["client_0", "client_1"]] * 6
    state = play(federation, everybody)
    catch_up = federation.download(state, "client_9")
    assert catch_up.nbytes < sum(broadcast.nbytes for broadcast in state.broadcasts.values())
    for module in SHAPES:
        assert relative_error(dense(catch_up.adapter, module), dense(state.cumulative, module)) < 1e-12


def test_whole_parameters_come_with_the_download_of_a_new_client() -> None:
    head = {"head.weight": torch.ones(3)}
    federation, state = rules(), ServerState.initial(head)
    assert federation.download(state, "client_0").nbytes == 12
    updates = [ClientUpdate("client_0", adapter(2, 1), 1, 1, head)]
    moved = federation.close_round(state, updates).state
    assert federation.download(moved, "client_0").nbytes == 0
    assert federation.download(moved, "client_1").full_parameters.keys() == {"head.weight"}


def broken(value: float) -> AdapterState:
    factors = dict(adapter(2, 5))
    factors["layers.1.up"].A[0, 0] = value
    return AdapterState.of(factors)


REFUSED = {
    "stranger": (update("stranger", adapter(2, 1)), "not a client of this federation"),
    "late": (update("client_1", adapter(2, 1), round_number=7), "expected an update of round 1, got one of round 7"),
    "no examples": (update("client_1", adapter(2, 1), num_examples=0), "positive number of examples, got 0"),
    "nan": (update("client_1", broken(math.nan)), "layers.1.up holds NaN or inf"),
    "inf": (update("client_1", broken(math.inf)), "layers.1.up holds NaN or inf"),
    "shape": (update("client_1", adapter(2, 1, shapes={"layers.1.up": (9, 20)})), "expected the shape (20, 9)"),
    "rank": (update("client_1", adapter(9, 1)), "expected at most the client's rank 8, got 9"),
    "module": (update("client_1", adapter(2, 1, shapes={"elsewhere": (4, 4)})), "elsewhere is not a module"),
    "unexpected head": (
        ClientUpdate("client_1", adapter(2, 1), 1, 1, {"head.bias": torch.zeros(1)}),
        "expected the whole parameters [], got ['head.bias']",
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
        ({}, "expected the whole parameters ['head.bias'], got []"),
    ],
)
def test_a_head_that_cannot_be_averaged_is_dropped(head: dict[str, torch.Tensor], reason: str) -> None:
    state = ServerState.initial({"head.bias": torch.zeros(1)})
    good = ClientUpdate("client_0", adapter(2, 1), 1, 1, {"head.bias": torch.ones(1)})
    closed = rules().close_round(state, [good, ClientUpdate("client_1", adapter(2, 1), 1, 1, head)])
    assert [drop.reason for drop in closed.dropped] == [reason]
    assert torch.equal(closed.state.full_parameters["head.bias"], torch.ones(1))


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
    line = record(closed, {"client_0": LocalWork(download_bytes=10, loss=1.0, seconds=1.0)}, {}, {})
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
    line = record(closed, work, {"loss": 1.0}, {"total": 3.0})
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
