"""Methods whose clients upload B alone, where what travels is rounded, cut and sent later."""

import pytest
import torch

from florist.aggregation import FedSvd, FfaLora, LinearRounds
from florist.compression.codecs import Codec, codec_named
from florist.compression.feedback import Compression, Feedback
from florist.compression.residual import NOTHING_OWED, Residual
from florist.errors import InvalidUpdateError
from florist.factors import AdapterState, LoraFactor
from florist.federation.communication import Communication
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.ranks import EnergyThreshold
from florist.rounds import Aggregator, ClientUpdate, Trained
from tests.builders import SHAPES, adapter, dense_sum, relative_error, update

RANKS = {"a": 2, "b": 8, "c": 5}
every_codec = pytest.mark.parametrize("codec", [codec_named(name) for name in ("int4", "float16", "int8")], ids=str)


def uploads(federation: Federation, state: ServerState, clients: str) -> list[ClientUpdate]:
    """What the clients send of a random B along what each was given."""
    sent: list[ClientUpdate] = []
    number = state.round_number + 1
    for client_id in clients:
        rank, rows = RANKS[client_id], federation.rows(state, client_id)
        own = adapter(rank, 10 * number + ord(client_id), dtype=torch.float32)
        trained = AdapterState.of({name: LoraFactor(own[name].B, rows(name)[:rank]) for name in SHAPES})
        whole = update(client_id, trained, num_examples=ord(client_id), round_number=number)
        sent.append(federation.sent_update(state, whole).update)
    return sent


@every_codec
@pytest.mark.parametrize("tau", [0.6, 1.0])
def test_in_linear_rounds_what_was_sent_and_what_is_held_back_is_all_that_was_uploaded(
    codec: Codec, tau: float
) -> None:
    unbounded = Feedback(rank_factor=99)
    communication = Communication(Compression(codec), Compression(codec, EnergyThreshold(tau), unbounded))
    federation = Federation(
        RANKS, LinearRounds(EnergyThreshold(1.0)), SHAPES, seed=1, min_replies=1, communication=communication
    )
    state = ServerState.initial()
    due = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    for clients in ("abc", "bc", "a", "abc"):
        sent = uploads(federation, state, clients)
        closed = federation.close_round(state, sent)
        assert closed.dropped == ()
        state = closed.state
        for name in SHAPES:
            due[name] += dense_sum(sent, name)
            held = state.owed.adapter
            there = state.cumulative[name].delta_weight().double()
            there += held[name].delta_weight() if name in held else 0.0
            assert relative_error(there, due[name]) < 1e-4
            A = federation.start(state, "b").local[name].A
            torch.testing.assert_close(A @ A.T, torch.eye(8) / 3, atol=1e-5, rtol=0)


@every_codec
@pytest.mark.quick(1)
def test_in_linear_rounds_a_client_sends_later_what_the_rows_of_a_round_could_not_express(codec: Codec) -> None:
    feedback = Feedback(rank_factor=99)
    communication = Communication(
        Compression(codec, None, feedback), Compression(codec, EnergyThreshold(0.7), feedback)
    )
    federation = Federation(
        RANKS, LinearRounds(EnergyThreshold(1.0)), SHAPES, seed=1, min_replies=1, communication=communication
    )
    state = ServerState.initial()
    owed: dict[str, Residual] = {}
    trained = {
        (client_id, name): torch.zeros(SHAPES[name], dtype=torch.float64) for client_id in RANKS for name in SHAPES
    }
    arrived = {key: torch.zeros_like(zero) for key, zero in trained.items()}
    for clients in ("abc", "bc", "abc", "ab"):
        sent: list[ClientUpdate] = []
        number = state.round_number + 1
        for client_id in clients:
            rank, rows = RANKS[client_id], federation.rows(state, client_id)
            own = adapter(rank, 10 * number + ord(client_id), dtype=torch.float32)
            new = AdapterState.of({name: LoraFactor(own[name].B, rows(name)[:rank]) for name in SHAPES})
            before = update(client_id, new, num_examples=5, round_number=number)
            outcome = federation.sent_update(state, before, owed.get(client_id, NOTHING_OWED))
            sent.append(outcome.update)
            owed[client_id] = outcome.owed
            assert outcome.packed is not None
            assert all(factor.A is None for factor in outcome.packed.factors.values())
            for name in SHAPES:
                trained[client_id, name] += new[name].delta_weight().double()
                arrived[client_id, name] += outcome.update.adapter[name].delta_weight().double()
                held = owed[client_id].adapter[name].delta_weight().double()
                assert relative_error(arrived[client_id, name] + held, trained[client_id, name]) < 1e-4
        closed = federation.close_round(state, sent)
        assert closed.dropped == ()
        state = closed.state


def test_what_the_bound_lets_go_in_linear_rounds_is_certified() -> None:
    compression = Compression(codec_named("int4"), None, Feedback())
    before, now = adapter(4, 1, dtype=torch.float32), adapter(4, 2, dtype=torch.float32)
    sent = compression(now, before, trained=Trained.B)
    for name, account in sent.accounts.items():
        due = now[name].delta_weight().double() + before[name].delta_weight().double()
        left = due - sent.decoded[name].delta_weight().double()
        lost = left - sent.held_back[name].delta_weight().double()
        assert sent.held_back[name].rank == 4
        assert float(lost.norm()) == pytest.approx(account.let_go, rel=1e-3)
        assert account.due == pytest.approx(float(due.norm()), rel=1e-4)


def test_a_residual_of_another_shape_is_refused_by_name() -> None:
    compression = Compression(codec_named("int4"), None, Feedback())
    other = AdapterState.of({name: LoraFactor(torch.ones(3, 1), torch.ones(1, 2)) for name in SHAPES})
    with pytest.raises(InvalidUpdateError, match=r"expected a residual of shape .*, got \(3, 2\); begin without one"):
        compression(adapter(2, 1, dtype=torch.float32), other, trained=Trained.B)


@every_codec
@pytest.mark.parametrize("aggregator", [FedSvd(), FfaLora()], ids=["fedsvd", "ffa"])
def test_clients_train_on_along_the_rows_that_arrived(codec: Codec, aggregator: Aggregator) -> None:
    communication = Communication(Compression(codec), Compression(codec))
    federation = Federation(RANKS, aggregator, SHAPES, seed=1, min_replies=1, communication=communication)
    state = ServerState.initial()
    for clients in ("ab", "abc", "ac"):
        sent = uploads(federation, state, clients)
        closed = federation.close_round(state, sent)
        assert closed.dropped == ()
        assert closed.broadcast is not None
        state = closed.state
        for name in SHAPES:
            certified = closed.broadcast.certificate.modules[name]
            off = state.continued[name].delta_weight().double() - dense_sum(sent, name)
            assert float(off.norm()) == pytest.approx(certified.error, rel=0.05, abs=1e-5)
        assert closed.deliveries["a"].nbytes < 0.6 * aggregator.work.continued_bytes(closed.deliveries["a"].continued)
