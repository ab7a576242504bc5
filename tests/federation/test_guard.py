from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import pytest
import torch

from florist.aggregation import (
    FedEx,
    FedIt,
    FedSvd,
    FfaLora,
    FlexLora,
    Flora,
    Florist,
    FullFineTuning,
    RaFlora,
    WholeSum,
)
from florist.aggregation.robust import MAKERS, GeometricMedian, MultiKrum, NormClippedMean
from florist.factors import AdapterState, LoraFactor
from florist.federation.closed_round import ClosedRound
from florist.federation.guard import Action, Guard
from florist.federation.local_init import Warm, change
from florist.federation.recording import LocalWork, round_record
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.ranks import EnergyThreshold
from florist.rounds import NO_ADAPTER, Aggregator, ClientUpdate, SavedParameters, Trained
from tests.builders import SHAPES, adapter, update, with_shared_rows
from tests.linalg.matrices import generator, orthonormal

CLIENTS = tuple(f"client_{k}" for k in range(6))
OFF = Guard.off()
METHODS: Mapping[str, Aggregator] = {
    "florist": Florist(EnergyThreshold(1.0)),
    "flora": Flora(),
    "whole": WholeSum(),
    "flexlora": FlexLora(8),
    "raflora": RaFlora(8),
    "fedit": FedIt(),
    "fedex": FedEx(),
    "ffa": FfaLora(),
    "fedsvd": FedSvd(),
    "full": FullFineTuning(),
}


def rules(aggregator: Aggregator = METHODS["florist"], **changes: object) -> Federation:
    settings = {
        "client_ranks": dict.fromkeys(CLIENTS, 8),
        "aggregator": aggregator,
        "shapes": SHAPES,
        "seed": 0,
        "min_replies": 1,
    }
    return Federation(**{**settings, **changes})


def scaled(one: ClientUpdate, factor: float) -> ClientUpdate:
    return replace(one, adapter=one.adapter.map(lambda each: each.scaled(factor)))


def plain(count: int, rank: int = 2) -> list[ClientUpdate]:
    return [update(CLIENTS[k], adapter(rank, seed=k)) for k in range(count)]


def reasons(closed: ClosedRound) -> Mapping[str, str]:
    return {drop.client_id: drop.reason for drop in closed.dropped}


def close(updates: Sequence[ClientUpdate], guard: Guard, saved: SavedParameters | None = None) -> ClosedRound:
    return rules(guard=guard).close_round(ServerState.initial(saved or {}), updates)


@pytest.mark.parametrize("count", [2, 3, 4, 6])
@pytest.mark.parametrize("factor", [30.0, 1e6, 1e12])
def test_an_update_far_longer_than_the_others_is_refused(count: int, factor: float) -> None:
    updates = plain(count)
    updates[0] = scaled(updates[0], factor)
    closed = close(updates, Guard())
    assert list(reasons(closed)) == ["client_0"]
    assert "times the median" in reasons(closed)["client_0"]
    assert [one.client_id for one in closed.counted] == list(CLIENTS[1:count])


@pytest.mark.parametrize("factor", [30.0, 1e12])
def test_a_guard_that_is_off_refuses_nothing(factor: float) -> None:
    assert all(getattr(Guard.off(), each.name) is None for each in fields(Guard) if each.name != "action")
    updates = plain(3)
    updates[0] = scaled(updates[0], factor)
    federation = rules(guard=Guard.off())
    closed = federation.close_round(ServerState.initial(), updates, claimed={"client_1": 10**6})
    assert not closed.dropped
    assert not closed.clipped
    assert len(closed.counted) == 3


def test_multi_krum_expects_no_fewer_hostile_clients_since_the_guard_refused_an_honest_one() -> None:
    # Two of six collude, and an honest client has many more examples than before. Of the five that are left two are
    # hostile: were one of them taken for refused already, at least one would count.
    honest = [
        update(CLIENTS[k], AdapterState.of({n: LoraFactor(f.B + 0.1 * g.B, f.A) for (n, f), g in pairs}))
        for k in range(4)
        for pairs in [list(zip(adapter(2, seed=0).items(), adapter(2, seed=k + 1).values(), strict=True))]
    ]
    hostile = [scaled(update(CLIENTS[k], honest[0].adapter), -2.0) for k in (4, 5)]
    grown = replace(honest[0], num_examples=1000 * honest[0].num_examples)
    federation = rules(robust=MultiKrum(0.25))
    closed = federation.close_round(
        ServerState.initial(), [grown, *honest[1:], *hostile], claimed={"client_0": honest[0].num_examples}
    )
    assert list(reasons(closed)) == ["client_0"]
    assert [closed.weights[name] > 0 for name in CLIENTS[1:]] == [True, True, True, False, False]


def test_two_of_five_cannot_raise_the_bound_for_each_other() -> None:
    updates = plain(5)
    updates[:2] = [scaled(updates[0], 1e3), scaled(updates[1], 1e9)]
    assert list(reasons(close(updates, Guard()))) == ["client_0", "client_1"]


def test_honest_clients_of_unlike_size_count() -> None:
    updates = plain(6)
    updates = [scaled(one, factor) for one, factor in zip(updates, (0.01, 1, 0.2, 3, 5, 0), strict=True)]
    assert not reasons(close(updates, Guard()))


def test_factors_that_are_harmless_each_are_seen_by_their_product() -> None:
    # No half is more than six times as long as the others', and the product is 36 times as long.
    updates = plain(4)
    grown = updates[0].adapter.map(lambda factor: LoraFactor(6 * factor.B, 6 * factor.A))
    updates[0] = replace(updates[0], adapter=grown)
    assert "norm of its product" in reasons(close(updates, Guard()))["client_0"]


def test_a_large_head_does_not_hide_behind_large_factors() -> None:
    before = {"score": torch.zeros(3)}
    heads = [1.0, 1.0, 1.0, 25.0]
    updates = [
        replace(scaled(one, 1e3), saved_parameters={"score": torch.full((3,), head)})
        for one, head in zip(plain(4), heads, strict=True)
    ]
    assert "parameters that travel whole" in reasons(close(updates, Guard(), before))["client_3"]
    # What counts is how far they moved, and not where they are.
    far = {"score": torch.full((3,), 1e4)}
    moved = [replace(one, saved_parameters={"score": far["score"] + 1}) for one in updates]
    assert not reasons(close(moved, Guard(), far))


def with_components(*lengths: float) -> list[ClientUpdate]:
    """Clients of ranks 6, 4, 2, 2 and 1, each of whose components adds so much to the norm of the product."""
    draw = generator(0)

    def adapted(rank: int, length: float) -> AdapterState:
        return AdapterState.of(
            {
                name: LoraFactor(length * orthonormal(m, rank, draw), orthonormal(n, rank, draw).T)
                for name, (m, n) in SHAPES.items()
            }
        )

    ranks = (6, 4, 2, 2, 1)
    return [update(CLIENTS[k], adapted(*each)) for k, each in enumerate(zip(ranks, lengths, strict=True))]


def test_a_short_update_may_be_long_for_its_rank() -> None:
    updates, guard = with_components(1, 1.2, 1, 0.9, 1.6), Guard(component_factor=1.5)
    # Clients of rank 6 are the longest, and clients of rank 1 are short even with components that are too long.
    assert not reasons(close(updates, Guard(norm_factor=2.6)))
    assert list(reasons(close(updates, guard))) == ["client_4"]
    assert (
        "is 1.6, above 1.5, 1.5 times the median of the others (guard.component_factor)"
        in (reasons(close(updates, guard))["client_4"])
    )
    (clip,) = close(updates, replace(guard, action=Action.CLIP)).clipped
    assert (clip.client_id, clip.factor) == ("client_4", pytest.approx(1.5 / 1.6))


@pytest.mark.parametrize("method", ["florist", "flora", "flexlora", "raflora"])
def test_clients_that_are_alike_but_for_their_ranks_count(method: str) -> None:
    federation = rules(METHODS[method], guard=Guard(component_factor=1.01))
    assert not reasons(federation.close_round(ServerState.initial(), with_components(1, 1, 1, 1, 1)))


def test_an_absolute_bound_needs_no_others() -> None:
    assert "guard.largest_norm" in reasons(close(plain(1), Guard(largest_norm=1e-3)))["client_0"]
    assert not reasons(close(plain(1), Guard(largest_norm=1e6)))


def test_a_clipped_update_counts_as_much_as_the_bound_allows() -> None:
    updates = plain(3)
    updates[0] = scaled(updates[0], 1e6)
    closed = close(updates, Guard(norm_factor=2.0, action=Action.CLIP))
    (clip,) = closed.clipped
    assert clip.client_id == "client_0"
    assert not closed.dropped
    expected = rules(guard=OFF).close_round(ServerState.initial(), [scaled(updates[0], clip.factor), *updates[1:]])
    for name in SHAPES:
        torch.testing.assert_close(
            closed.state.cumulative[name].delta_weight(), expected.state.cumulative[name].delta_weight()
        )
    record = round_record(closed, dict.fromkeys(CLIENTS, LocalWork(0, 0.0, 0.0)), {}, {})
    assert record.clipped == (clip,)
    assert record.clients[0].weight == pytest.approx(clip.factor / 3)


def test_updates_that_point_away_from_the_others_are_refused_where_that_is_asked_for() -> None:
    shared = adapter(2, seed=1)
    updates = [update(CLIENTS[k], shared) for k in range(4)]
    updates[0] = scaled(updates[0], -1.0)
    assert list(reasons(close(updates, Guard(smallest_cosine=-0.5)))) == ["client_0"]
    assert not reasons(close(updates, Guard()))
    assert not reasons(close(updates[:2], Guard(smallest_cosine=-0.5)))  # which of two is it?


def test_a_client_may_not_claim_many_more_examples_than_at_first() -> None:
    updates = [replace(one, num_examples=100) for one in plain(3)]
    for first, refused in ((9, True), (10, False), (1000, False), (1001, True)):
        closed = rules().close_round(ServerState.initial(), updates, claimed={"client_1": first})
        assert ("client_1" in reasons(closed)) is refused
    assert (
        "guard.examples_factor"
        in reasons(rules().close_round(ServerState.initial(), updates, (), {"client_1": 1}))["client_1"]
    )


def test_a_round_with_too_few_updates_after_the_guard_changes_nothing() -> None:
    updates = plain(3)
    updates[0] = scaled(updates[0], 1e6)
    closed = rules(min_replies=3).close_round(ServerState.initial(), updates)
    assert closed.broadcast is None
    assert not closed.state.broadcasts


# --- robust rules, with every method


def of_method(aggregator: Aggregator, name: str, seed: int, size: float, round_number: int = 1) -> ClientUpdate:
    trained = aggregator.work.trained
    if trained == Trained.WEIGHTS:
        draw = torch.Generator().manual_seed(seed)
        weights = {"layer.weight": size * torch.randn(4, 3, generator=draw, dtype=torch.float64)}
        return ClientUpdate(name, NO_ADAPTER, 1, round_number, weights)
    held = with_shared_rows(8, seed) if trained == Trained.B else adapter(8, seed)
    return update(name, held.map(lambda factor: factor.scaled(size)) if trained != Trained.B else AdapterState.of(
        {module: LoraFactor(size * factor.B, factor.A) for module, factor in held.items()}
    ), round_number=round_number)  # fmt: skip


def first_state(aggregator: Aggregator) -> ServerState:
    whole = aggregator.work.trained == Trained.WEIGHTS
    return ServerState.initial({"layer.weight": torch.zeros(4, 3, dtype=torch.float64)} if whole else {})


def length(state: ServerState) -> float:
    squares = sum(factor.energy() for factor in state.global_adapter.values())
    return float(squares + sum(float(value.square().sum()) for value in state.saved_parameters.values())) ** 0.5


@pytest.mark.parametrize("robust", [pytest.param(make(0.25), id=name) for name, make in MAKERS.items()])
@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=() if name in {"florist", "fedit", "full"} else pytest.mark.slow) for name in METHODS],
)
def test_two_hostile_clients_of_six_move_no_method_far(method: str, robust: object) -> None:
    aggregator = METHODS[method]
    if aggregator.work.trained == Trained.B:
        # The rows are those that the run draws in this round.
        federation = rules(aggregator, guard=OFF)
        start = first_state(aggregator)
        rows = federation.rows(start, "client_0")
        updates = [
            update(
                name,
                AdapterState.of(
                    {
                        module: LoraFactor((1e9 if k < 2 else 1.0) * factor.B, rows(module)[:8].double())
                        for module, factor in adapter(8, k).items()
                    }
                ),
            )
            for k, name in enumerate(CLIENTS)
        ]
    else:
        start = first_state(aggregator)
        updates = [of_method(aggregator, name, k, 1e9 if k < 2 else 1.0) for k, name in enumerate(CLIENTS)]
    clean = rules(aggregator, guard=OFF).close_round(start, updates[2:])
    plain_sum = rules(aggregator, guard=OFF).close_round(start, updates)
    defended = rules(aggregator, guard=OFF, robust=robust).close_round(start, updates)
    assert not defended.dropped
    assert length(plain_sum.state) > 1e4 * length(clean.state)
    assert length(defended.state) < 10 * length(clean.state)
    assert set(defended.weights) == set(CLIENTS)


@pytest.mark.parametrize("method", ["fedit", "fedex"])
def test_large_halves_do_not_hide_behind_a_small_product(method: str) -> None:
    aggregator = METHODS[method]
    updates = [update(name, adapter(8, k)) for k, name in enumerate(CLIENTS)]
    crooked = updates[0].adapter.map(lambda factor: LoraFactor(1e6 * factor.B, 1e-6 * factor.A))
    updates[0] = replace(updates[0], adapter=crooked)
    assert "halves" in reasons(rules(aggregator).close_round(ServerState.initial(), updates))["client_0"]
    robust = rules(aggregator, guard=OFF, robust=GeometricMedian()).close_round(ServerState.initial(), updates)
    clean = rules(aggregator, guard=OFF).close_round(ServerState.initial(), updates[1:])
    assert length(robust.state) < 5 * length(clean.state)


def test_what_is_clipped_of_a_continued_adapter_is_its_change() -> None:
    aggregator = FlexLora(8)
    federation = rules(aggregator, guard=OFF)
    first = federation.close_round(
        ServerState.initial(), [update(name, adapter(8, k)) for k, name in enumerate(CLIENTS)]
    ).state
    # All train on from what was sent, and change it little; one moves as far again as the adapter is long.
    begun = first.continued
    moved = [
        update(
            name,
            begun.map(
                lambda factor, size=(1.0 if k == 0 else 1e-3): LoraFactor(
                    factor.B + size * factor.B.roll(1, 0), factor.A
                )
            ),
            round_number=2,
        )
        for k, name in enumerate(CLIENTS)
    ]
    assert list(reasons(rules(aggregator).close_round(first, moved))) == ["client_0"]
    closed = rules(aggregator, guard=OFF, robust=NormClippedMean()).close_round(first, moved)
    left = change(closed.state.continued, begun)
    sent = change(moved[1].adapter, begun)
    assert sum(f.energy() for f in left.values()) <= 1.1 * sum(f.energy() for f in sent.values())


def test_a_half_precision_upload_is_measured_from_a_single_precision_start() -> None:
    federation = rules(local_init=Warm())
    state = federation.close_round(ServerState.initial(), plain(3)).state
    uploads = [update(CLIENTS[k], adapter(2, k, dtype=torch.float16), round_number=2) for k in range(3)]
    assert len(federation.close_round(state, uploads).counted) == 3


def test_without_a_rule_or_a_clip_the_round_is_what_it_was_bit_for_bit() -> None:
    updates = plain(4)
    there, bare = close(updates, Guard()), close(updates, OFF)
    assert not there.weights
    for name in SHAPES:
        assert torch.equal(there.state.cumulative[name].B, bare.state.cumulative[name].B)


def test_what_the_server_adds_to_a_round_is_no_client_of_its_certificate() -> None:
    federation = rules(guard=Guard(norm_factor=2.0, action=Action.CLIP))
    sent = [update(name, adapter(2, k)) for k, name in enumerate(CLIENTS)]
    sent[0] = scaled(sent[0], 100.0)
    closed = federation.close_round(ServerState.initial(), sent)
    assert closed.clipped
    assert closed.broadcast is not None
    for module in closed.broadcast.certificate.modules.values():
        assert module.absent_from == ()
        assert module.input_rank == 2 * len(sent)
