"""Nothing is lost, only late: the rounds with codecs, cuts and feedback, against a dense float64 oracle.

The clients are played here with all that they keep: what they hold and what they hold back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from florist.aggregation import FedEx, FedIt, FfaLora, FlexLora, Flora, Florist
from florist.compression.codecs import CODECS, Codec, FloatCodec, IntegerCodec
from florist.compression.feedback import Compression, Feedback
from florist.compression.packed import PackedAdapter
from florist.compression.residual import NOTHING_OWED, Residual
from florist.errors import NonFiniteUpdateError
from florist.factors import AdapterState
from florist.federation.client_residuals import ClientResiduals
from florist.federation.closed_round import ClosedRound
from florist.federation.communication import Communication, SentUpdate
from florist.federation.downloads import Download
from florist.federation.local_init import Aligned, Fresh, LocalInit, Warm
from florist.federation.recording import LocalWork, round_record
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.ranks import EnergyThreshold, FixedRank
from florist.rounds import NO_ADAPTER, Aggregator, ClientUpdate
from tests.builders import SHAPES, adapter, update, with_shared_rows

RANKS = {f"client_{k}": rank for k, rank in enumerate((2, 3, 4, 4, 6, 8, 8, 8))}
WIDE = Feedback(rank_factor=100.0)
"""A bound on the rank of residuals that nothing reaches."""
QUICK = {"float16", "int8", "int4"}
every_codec = pytest.mark.parametrize(
    "codec",
    [
        pytest.param(CODECS[name], id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name in ("int4", *(each for each in CODECS if each != "int4"))
    ],
)

Dense = dict[str, Tensor]


def zeros() -> Dense:
    return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}


def dense(held: AdapterState) -> Dense:
    found = zeros()
    for name, factor in held.items():
        found[name] += factor.B.double() @ factor.A.double()
    return found


def plus(*terms: Dense, weights: tuple[float, ...] = ()) -> Dense:
    total = zeros()
    for weight, term in zip(weights or (1.0,) * len(terms), terms, strict=True):
        for name in SHAPES:
            total[name] += weight * term[name]
    return total


def distance(one: Dense, other: Dense) -> float:
    return float(sum((one[name] - other[name]).norm() ** 2 for name in SHAPES)) ** 0.5


def norm(one: Dense) -> float:
    return distance(one, zeros())


def rules(communication: Communication, **changes: object) -> Federation:
    settings: dict[str, object] = {
        "client_ranks": RANKS,
        "aggregator": Flora(),
        "shapes": SHAPES,
        "seed": 0,
        "min_replies": 1,
        "fraction": 0.5,
        "communication": communication,
    }
    return Federation(**{**settings, **changes})  # pyright: ignore[reportArgumentType]


def compensated(codec: Codec, *, tau: float = 0.7, feedback: Feedback = WIDE) -> Communication:
    return Communication(
        upload=Compression(codec, EnergyThreshold(0.8), feedback),
        download=Compression(codec, EnergyThreshold(tau), feedback),
    )


@dataclass
class Played:
    """A federation whose clients are here, and the sums of what they trained and sent.

    Attributes:
        trained: sum of U over the rounds that counted, by client.
        uploaded: sum of P over them, by client.
        due: sum over the rounds of the weighted uploads.
        broadcast: sum of what was broadcast.
        let_go: norms of what was certified as never sent.
        held: what every client has of the global adapter, from its downloads alone.
    """

    federation: Federation
    state: ServerState = field(default_factory=ServerState.initial)
    owed: ClientResiduals = field(default_factory=ClientResiduals)
    trained: dict[str, Dense] = field(default_factory=dict)
    uploaded: dict[str, Dense] = field(default_factory=dict)
    due: Dense = field(default_factory=zeros)
    broadcast: Dense = field(default_factory=zeros)
    let_go: float = 0.0
    held: dict[str, Dense] = field(default_factory=dict)
    closed: ClosedRound | None = None

    def download(self, client_id: str, download: Download) -> None:
        before = zeros() if download.replaces else self.held.get(client_id, zeros())
        arrived = [dense(each.unpacked()) for each in download.packed]
        self.held[client_id] = plus(before, dense(download.adapter), *arrived)

    def play(self, asked: tuple[str, ...], *, lost: tuple[str, ...] = (), refused: tuple[str, ...] = ()) -> ClosedRound:
        """One round. Clients in `lost` die with all that they did; those in `refused` answer for another round."""
        number = self.state.round_number + 1
        sent: dict[str, SentUpdate] = {}
        new: dict[str, AdapterState] = {}
        for client_id in asked:
            if client_id not in lost:
                self.download(client_id, self.federation.download(self.state, client_id))
                self.state = self.federation.with_holds(self.state, {client_id: self.state.latest})
            seed = 1000 * number + int(client_id.removeprefix("client_"))
            new[client_id] = adapter(RANKS[client_id], seed, dtype=torch.float32)
            mine = update(client_id, new[client_id], num_examples=1 + seed % 5, round_number=number)
            sent[client_id] = self.federation.sent_update(self.state, mine, self.owed.of(client_id))
        arriving = [
            replace(each.update, round_number=number - 1 if name in refused else number)
            for name, each in sent.items()
            if name not in lost
        ]
        self.closed = self.federation.close_round(self.state, arriving)
        assert [drop.client_id for drop in self.closed.dropped] == [name for name in sent if name in refused]
        if self.closed.broadcast is not None:
            counted = {each.client_id: sent[each.client_id] for each in self.closed.counted}
            total = sum(each.update.num_examples for each in counted.values())
            for client_id, each in counted.items():
                uploaded = dense(each.update.adapter)
                self.trained[client_id] = plus(self.trained.get(client_id, zeros()), dense(new[client_id]))
                self.uploaded[client_id] = plus(self.uploaded.get(client_id, zeros()), uploaded)
                self.due = plus(self.due, uploaded, weights=(1.0, each.update.num_examples / total))
                self.download(client_id, self.closed.deliveries[client_id])
            self.broadcast = plus(self.broadcast, dense(self.closed.broadcast.shared))
            self.owed = self.owed.followed_by(number, {name: each.owed for name, each in counted.items()})
            for module in self.closed.broadcast.certificate.modules.values():
                self.let_go += (max(0.0, module.error**2 - module.held_back**2)) ** 0.5
        self.state = self.closed.state
        return self.closed


HAPPENING: list[dict[str, tuple[str, ...]]] = [
    {},
    {"lost": ("client_0", "client_1", "client_2", "client_3")},
    {"refused": ("client_4", "client_5", "client_6", "client_7")},
    {"lost": tuple(RANKS)},
    {},
    {"refused": tuple(RANKS)},
    {},
    {},
]


@pytest.mark.parametrize(
    "local_init", [pytest.param(Fresh(), marks=pytest.mark.slow), Aligned()], ids=["fresh", "aligned"]
)
@every_codec
@pytest.mark.quick(1)
def test_in_every_round_what_was_sent_and_what_is_held_back_are_what_was_trained(
    codec: Codec, local_init: LocalInit
) -> None:
    played = Played(rules(compensated(codec), local_init=local_init))
    outcomes: list[bool] = []
    for number, happening in enumerate(HAPPENING, start=1):
        asked = played.federation.participants(number)
        assert len(asked) == 4
        closed = played.play(asked, **happening)
        outcomes.append(closed.broadcast is not None)
        # The server: sum of broadcasts + held back = sum of the weighted uploads.
        found = plus(played.broadcast, dense(played.state.owed.adapter))
        assert distance(found, played.due) <= 2e-4 * number * norm(played.due) + played.let_go
        assert played.let_go <= 2e-4 * number * norm(played.due)
        # Each client: sum of uploads + held back = sum of what it trained in the rounds that counted.
        for client_id, trained in played.trained.items():
            mine = plus(played.uploaded[client_id], dense(played.owed.of(client_id).adapter))
            assert distance(mine, trained) <= 2e-4 * number * norm(trained)
        # The global adapter of the server, and of whoever took part, is what was broadcast.
        assert distance(dense(played.state.cumulative), played.broadcast) <= 1e-5 * norm(played.broadcast)
        for each in closed.counted if closed.broadcast is not None else ():
            assert distance(played.held[each.client_id], played.broadcast) <= 1e-5 * norm(played.broadcast)
    assert outcomes.count(False) == 2
    assert outcomes[0]
    assert outcomes[-1]


@every_codec
@pytest.mark.quick(1)
def test_what_is_held_back_is_nearly_all_of_what_is_missing(codec: Codec) -> None:
    # Without feedback it would be forgotten: the invariant above is none of a server that holds back nothing.
    played = Played(rules(compensated(codec)))
    for number in range(1, 4):
        played.play(played.federation.participants(number))
    assert norm(dense(played.state.owed.adapter)) > 0.1 * norm(played.due)
    assert all(norm(dense(played.owed.of(name).adapter)) > 0 for name in played.trained)


@pytest.mark.parametrize("codec", [FloatCodec(), IntegerCodec(4)], ids=["float32", "int4"])
def test_what_the_bound_on_residuals_lets_go_is_certified(codec: Codec) -> None:
    tight = Communication(download=Compression(codec, FixedRank(1), Feedback(rank_factor=0.1)))
    played = Played(rules(tight))
    for number in range(1, 6):
        before, due = dense(played.state.owed.adapter), played.due
        closed = played.play(played.federation.participants(number))
        assert closed.broadcast is not None
        new = plus(played.due, due, weights=(1.0, -1.0))
        total = plus(new, before)
        kept, sent = dense(played.state.owed.adapter), dense(closed.broadcast.shared)
        for name, module in closed.broadcast.certificate.modules.items():
            missing = total[name] - sent[name]
            lost = missing - kept[name]
            assert float(lost.norm()) > 1e-3 * float(total[name].norm())
            assert module.norm == pytest.approx(float(total[name].norm()), rel=1e-4)
            assert module.held_back == pytest.approx(float(kept[name].norm()), rel=1e-4)
            # What is certified as let go may be an upper bound.
            certified = (module.error**2 - module.held_back**2) ** 0.5
            assert 0.99 * float(lost.norm()) <= certified <= 2 * float(lost.norm())
            assert module.error >= 0.999 * float(missing.norm())
            assert module.energy_kept <= 1 - float(missing.norm() / total[name].norm()) ** 2 + 2e-3
            assert module.rank == closed.broadcast.shared.specs[name].rank == 1
            assert (module.codec_error > 1e-3 * module.norm) == (codec.name == "int4")


def test_what_went_late_comes() -> None:
    # A first round of much, then rounds of nothing new: the broadcasts bring the rest.
    played = Played(rules(compensated(CODECS["int4"]), fraction=1.0))
    first = played.play(tuple(RANKS))
    assert first.broadcast is not None
    gaps = [distance(played.broadcast, played.due)]
    for number in range(2, 12):
        nothing = [update(name, adapter(2, 0).map(lambda f: f.leading(0)), round_number=number) for name in RANKS]
        empty = [replace(each, adapter=each.adapter.map(lambda f: f.to(dtype=torch.float32))) for each in nothing]
        closed = played.federation.close_round(played.state, empty)
        assert closed.broadcast is not None
        played.broadcast = plus(played.broadcast, dense(closed.broadcast.shared))
        played.state = closed.state
        gaps.append(distance(played.broadcast, played.due))
    assert gaps[-1] < 0.01 * gaps[0]
    assert gaps == sorted(gaps, reverse=True)


# --- bytes


@every_codec
def test_bytes_are_those_of_what_is_packed(codec: Codec) -> None:
    played = Played(rules(compensated(codec)))
    for number in range(1, 4):
        asked = played.federation.participants(number)
        lacked = {name: played.federation.download(played.state, name) for name in asked}
        closed = played.play(asked)
        assert closed.broadcast is not None
        shared = PackedAdapter.of(closed.broadcast.shared, codec)
        assert closed.broadcast.certificate.bytes_out == shared.nbytes
        for delivery in closed.deliveries.values():
            assert (
                delivery.nbytes
                == shared.nbytes
                == sum(tensor.nbytes for tensor in delivery.packed[0].tensors().values())
            )
            assert not delivery.adapter
        for each in closed.counted:
            assert closed.upload_bytes[each.client_id] == PackedAdapter.of(each.adapter, codec).nbytes
            assert max(spec.rank for spec in each.adapter.specs.values()) <= RANKS[each.client_id]
        work = {name: LocalWork(lacked[name].nbytes, 0.5, 1.0) for name in asked}
        line = round_record(closed, work, {}, {})
        assert line.upload_bytes == closed.broadcast.certificate.bytes_in == sum(closed.upload_bytes.values())
        assert line.download_bytes == sum(each.nbytes for each in lacked.values()) + 4 * shared.nbytes
        assert line.broadcast_bytes == shared.nbytes
        assert line.held_back == pytest.approx(norm(dense(played.state.owed.adapter)), rel=1e-6)
        assert line.codec_error == pytest.approx(closed.broadcast.certificate.codec_error)
        for client in line.clients:
            mine = norm(dense(played.owed.of(client.client_id).adapter))
            assert client.held_back == pytest.approx(mine, rel=1e-6)


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize(
    "aggregator",
    [Florist(EnergyThreshold(0.9)), Flora(), FedIt(), FlexLora(8), FedEx()],
    ids=lambda each: type(each).__name__,
)
def test_without_a_codec_nothing_is_touched(aggregator: Aggregator, saved: bool) -> None:
    plain = rules(Communication(), aggregator=aggregator)
    head = {"head.weight": torch.full((3,), 1 / 3)} if saved else {}
    state = ServerState.initial(head)
    for number in (1, 2):
        updates = [
            ClientUpdate(name, adapter(RANKS[name], 10 * number + k, dtype=torch.float32), k + 1, number, head)
            for k, name in enumerate(plain.participants(number))
        ]
        given = [plain.sent_update(state, each) for each in updates]
        assert all(each.packed is None and not each.owed for each in given)
        for each, mine in zip(given, updates, strict=True):
            assert each.update.adapter is mine.adapter
            assert each.update.sent_bytes == mine.nbytes
        closed = plain.close_round(state, [each.update for each in given])
        expected = aggregator([plain.client_starts.summand(each, state) for each in updates])  # the only oracle of bits
        assert closed.broadcast is not None
        for found, wanted in (
            (closed.broadcast.shared, expected.shared),
            (closed.broadcast.continued, expected.continued),
        ):
            assert list(found) == list(wanted)
            for name in found:
                assert torch.equal(found[name].B, wanted[name].B)
                assert torch.equal(found[name].A, wanted[name].A)
        assert closed.broadcast.certificate.bytes_out == expected.certificate.bytes_out
        assert not closed.state.owed
        assert not closed.state.broadcasts.packed
        assert all(not delivery.packed for delivery in closed.deliveries.values())
        state = closed.state


# --- catch-up


@every_codec
@pytest.mark.quick(1)
def test_who_was_away_is_sent_what_was_broadcast_as_it_was_packed(codec: Codec) -> None:
    played = Played(rules(compensated(codec), fraction=1.0))
    stays, leaves, never = ("client_4", "client_5"), "client_1", "client_7"
    played.play((*stays, leaves))
    broadcasts: list[PackedAdapter] = []
    for _ in range(3):
        closed = played.play(stays)
        broadcasts.append(closed.deliveries["client_4"].packed[0])
    back = played.federation.download(played.state, leaves)
    assert [each.nbytes for each in back.packed] == [each.nbytes for each in broadcasts]
    assert back.nbytes == sum(each.nbytes for each in broadcasts)
    assert not back.adapter
    played.download(leaves, back)
    assert distance(played.held[leaves], played.broadcast) <= 1e-5 * norm(played.broadcast)
    # One that never held anything is sent all four, which is less than the float32 sum.
    new = played.federation.download(played.state, never)
    assert len(new.packed) == 4
    played.download(never, new)
    assert distance(played.held[never], played.broadcast) <= 1e-5 * norm(played.broadcast)
    if codec.itemsize <= 1:
        assert new.nbytes < played.state.cumulative.nbytes
    assert not played.federation.download(played.state, "client_4").nbytes


def test_beyond_the_bound_the_whole_adapter_is_sent_in_float32() -> None:
    played = Played(rules(compensated(CODECS["int4"]), fraction=1.0, catch_up_rounds=2))
    for _ in range(5):
        played.play(("client_4", "client_5"))
    late = played.federation.download(played.state, "client_1")
    assert late.replaces
    assert not late.packed
    assert late.adapter is played.state.cumulative
    played.download("client_1", late)
    assert distance(played.held["client_1"], played.broadcast) <= 1e-5 * norm(played.broadcast)


# --- what clients hold back


def test_a_client_that_lost_its_residual_begins_without_one() -> None:
    federation = rules(compensated(CODECS["int4"]), fraction=1.0)
    state = ServerState.initial()
    mine = update("client_5", adapter(8, 1, dtype=torch.float32))
    first = federation.sent_update(state, mine)
    again = federation.sent_update(state, mine, NOTHING_OWED)
    other = federation.sent_update(state, mine, first.owed)
    assert distance(dense(first.update.adapter), dense(again.update.adapter)) == 0
    total = plus(dense(mine.adapter), dense(first.owed.adapter))
    assert distance(plus(dense(other.update.adapter), dense(other.owed.adapter)), total) <= 2e-4 * norm(total)
    assert other.update.held_back == pytest.approx(norm(dense(other.owed.adapter)), rel=1e-6)


def test_a_warm_client_holds_back_of_what_training_changed() -> None:
    federation = rules(compensated(CODECS["int8"]), fraction=1.0, local_init=Warm())
    state = ServerState.initial()
    for number in (1, 2, 3):
        given = federation.start(state, "client_5").local
        idle = update("client_5", given or adapter(8, 3, dtype=torch.float32), round_number=number)
        sent = federation.sent_update(state, idle)
        trained = plus(dense(idle.adapter), dense(given), weights=(1.0, -1.0))
        found = plus(dense(sent.update.adapter), dense(sent.owed.adapter))
        assert distance(found, trained) <= 2e-4 * norm(dense(idle.adapter))
        state = federation.close_round(state, [sent.update]).state


@pytest.mark.parametrize("name", ["float16", "int8", "int4"])
def test_what_is_not_finite_is_not_sent(name: str) -> None:
    federation = rules(compensated(CODECS[name]))
    broken = adapter(2, 1, dtype=torch.float32)
    broken["layers.1.up"].A[0, 0] = torch.nan
    with pytest.raises(NonFiniteUpdateError, match=r"layers\.1\.up"):
        federation.sent_update(ServerState.initial(), update("client_5", broken))


@pytest.mark.parametrize(
    ("aggregator", "feedback"),
    [(Flora(), None), (Flora(), WIDE), (FedIt(), None), (FedEx(), None)],
    ids=["flora", "flora with feedback", "fedit", "fedex"],
)
@pytest.mark.parametrize(("name", "value"), [("float16", 1e5), ("int4", 8e18), ("int2", 2e18)])
def test_an_update_that_no_broadcast_could_carry_costs_the_round_no_more_than_itself(
    name: str, value: float, aggregator: Aggregator, feedback: Feedback | None
) -> None:
    download = Compression(CODECS[name], None, feedback)
    federation = rules(Communication(download=download), aggregator=aggregator)
    huge = adapter(2, 1, dtype=torch.float32).map(lambda f: type(f)(f.B, torch.zeros_like(f.A)))
    huge["layers.1.up"].B[0, 0] = value
    bad, good = update("client_1", huge), update("client_5", adapter(8, 1, dtype=torch.float32))
    closed = federation.close_round(ServerState.initial(), [bad, good])
    assert [drop.client_id for drop in closed.dropped] == ["client_1"]
    assert "layers.1.up: expected norms below" in closed.dropped[0].reason
    assert [each.client_id for each in closed.counted] == ["client_5"]
    assert closed.broadcast is not None


def test_a_head_that_no_broadcast_could_carry_is_dropped() -> None:
    federation = rules(Communication(saved_download=FloatCodec(torch.float16)))
    state = ServerState.initial({"head.weight": torch.zeros(2)})
    sent = [
        ClientUpdate(name, adapter(2, 1, dtype=torch.float32), 1, 1, {"head.weight": torch.full((2,), value)})
        for name, value in (("client_1", 1e5), ("client_5", 2.0))
    ]
    closed = federation.close_round(state, sent)
    (drop,) = closed.dropped
    assert (drop.client_id, drop.reason) == ("client_1", "head.weight: expected numbers below 3.3e+04, got 1.0e+05")
    assert closed.broadcast is not None


# --- methods that continue


@every_codec
@pytest.mark.parametrize("aggregator", [FedIt(), FlexLora(8), FedEx(), FfaLora()], ids=lambda each: type(each).__name__)
def test_methods_that_continue_train_on_from_decoded_values(aggregator: Aggregator, codec: Codec) -> None:
    both = Communication(upload=Compression(codec), download=Compression(codec))
    federation = rules(both, aggregator=aggregator, fraction=1.0)
    trained = aggregator.work.trained
    state = ServerState.initial()
    for number in (1, 2, 3):
        updates = [
            update(name, with_shared_rows(RANKS[name], 10 * number + k, dtype=torch.float32), round_number=number)
            for k, name in enumerate(("client_0", "client_4", "client_7"))
        ]
        sent = [federation.sent_update(state, each) for each in updates]
        for each, mine in zip(sent, updates, strict=True):
            assert each.packed is not None
            assert each.update.sent_bytes == PackedAdapter.of(mine.adapter, codec, trained).nbytes
            assert not each.owed
        closed = federation.close_round(state, [each.update for each in sent])
        assert not closed.dropped
        assert closed.broadcast is not None
        aggregated = aggregator([federation.client_starts.summand(each.update, state) for each in sent])
        for name, factor in aggregated.continued.items():
            decoded = PackedAdapter.of(AdapterState.of({name: factor}), codec, trained).unpacked(aggregated.continued)
            assert torch.equal(closed.state.continued[name].B, decoded[name].B)
            assert torch.equal(closed.state.continued[name].A, decoded[name].A)
        for client_id, delivery in closed.deliveries.items():
            assert delivery.packed_continued is not None
            arrived = delivery.packed_continued.unpacked(delivery.continued)
            start = federation.start(closed.state, client_id).local
            for name in arrived:
                assert torch.equal(arrived[name].B, start[name].B)
                assert torch.equal(arrived[name].A, start[name].A)
            assert delivery.nbytes == delivery.packed_continued.nbytes + sum(each.nbytes for each in delivery.packed)
        assert max(delivery.nbytes for delivery in closed.deliveries.values()) == closed.broadcast.certificate.bytes_out
        exact = plus(*(dense(each.update.adapter) for each in sent), weights=(1 / 3,) * 3)
        made = plus(dense(closed.state.continued), dense(closed.broadcast.shared))
        if isinstance(aggregator, FedEx | FfaLora) and number == 1:
            assert closed.broadcast.certificate.relative_error == pytest.approx(
                distance(made, exact) / norm(exact), rel=0.3, abs=1e-5
            )
        state = closed.state


# --- parameters that travel whole


@pytest.mark.slow  # trains many rounds
def test_saved_parameters_travel_in_16_bits_and_what_is_rounded_comes_later() -> None:
    half = FloatCodec(torch.float16)
    kept = Compression(FloatCodec(torch.float16), None, Feedback())
    federation = rules(Communication(kept, kept, half, half), fraction=1.0)
    head = {"head.weight": torch.ones(5, 3)}
    state, owed = ServerState.initial(head), dict.fromkeys(("client_0", "client_4"), NOTHING_OWED)
    assert federation.download(state, "client_0").nbytes == 4 * 15  # the base's own, which no codec has rounded
    values: Mapping[str, Tensor] = head
    for number in range(1, 41):
        values = {name: tensor + 1e-4 for name, tensor in values.items()}  # float16 cannot tell 1.0001 from 1
        sent: dict[str, SentUpdate] = {}
        for name in owed:
            trained = ClientUpdate(name, adapter(2, number, dtype=torch.float32), 1, number, values)
            sent[name] = federation.sent_update(state, trained, owed[name])
            held = sent[name].owed.saved_parameters["head.weight"].double()
            due = values["head.weight"].double() + owed[name].saved_parameters.get("head.weight", torch.zeros(5, 3))
            assert torch.allclose(sent[name].update.saved_parameters["head.weight"].double() + held, due, atol=1e-9)
            assert sent[name].packed is not None
            assert sent[name].update.sent_bytes == sent[name].packed.nbytes + 2 * 15
        closed = federation.close_round(state, [each.update for each in sent.values()])
        assert closed.broadcast is not None
        assert closed.deliveries["client_0"].nbytes == closed.deliveries["client_0"].packed[0].nbytes + 2 * 15
        state, owed = closed.state, {name: each.owed for name, each in sent.items()}
        assert state.saved_parameters["head.weight"].dtype == torch.float32
    assert torch.allclose(state.saved_parameters["head.weight"], values["head.weight"], atol=1.5e-3)
    assert float(state.saved_parameters["head.weight"][0, 0]) > 1.002
    assert isinstance(owed["client_0"], Residual)


def test_a_module_that_is_owed_alone_is_broadcast_and_certified() -> None:
    federation = rules(compensated(CODECS["int8"]), fraction=1.0)
    first = federation.close_round(ServerState.initial(), [update("client_5", adapter(8, 1, dtype=torch.float32))])
    name = "layers.1.up"
    alone = AdapterState.of({name: adapter(2, 2, dtype=torch.float32)[name]})
    closed = federation.close_round(first.state, [update("client_5", alone, round_number=2)])
    assert closed.broadcast is not None
    assert set(closed.broadcast.shared) == set(SHAPES)
    module = closed.broadcast.certificate.modules["layers.0.q_proj"]
    owed = dense(first.state.owed.adapter)["layers.0.q_proj"]
    assert (module.input_rank, module.shape) == (0, (12, 16))
    assert module.norm == pytest.approx(float(owed.norm()), rel=1e-5)


def test_an_empty_global_adapter_is_flushed_to_what_is_held_back() -> None:
    played = Played(rules(compensated(CODECS["int4"])))
    assert played.state.flushed_adapter is NO_ADAPTER
    for number in (1, 2):
        played.play(played.federation.participants(number))
    assert distance(dense(played.state.flushed_adapter), played.due) <= 1e-3 * norm(played.due)
    assert distance(dense(played.state.global_adapter), played.due) > 0.1 * norm(played.due)
