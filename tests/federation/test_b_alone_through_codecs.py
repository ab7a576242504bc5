"""Methods whose clients upload B alone, where what travels is rounded, cut and sent later."""

import pytest
import torch

from florist.aggregation import FedSvd, FfaLora, LinearRounds
from florist.compression.codecs import Codec, codec_named
from florist.compression.feedback import Compression, Feedback
from florist.factors import AdapterState, LoraFactor
from florist.federation.communication import Communication
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.ranks import EnergyThreshold
from florist.rounds import Aggregator, ClientUpdate
from tests.builders import SHAPES, adapter, dense_sum, relative_error, update

RANKS = {"a": 2, "b": 8, "c": 5}
every_codec = pytest.mark.parametrize("codec", [codec_named(name) for name in ("float16", "int8", "int4")], ids=str)


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
