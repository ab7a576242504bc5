"""The attacks are attacks: the plain sum follows them, and the guard and the robust rules undo what they are for.

The updates are synthetic: honest ones share a direction and differ by as much again. What defends a trained model is in
docs/hostile-clients.md, by ``benchmarks/attacks.py``.
"""

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import Tensor

from florist.aggregation import Florist
from florist.aggregation.robust import MAKERS
from florist.factors import AdapterState, stack
from florist.federation.guard import Guard
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.ranks import EnergyThreshold
from florist.rounds import ClientUpdate
from tests import attacks
from tests.builders import adapter, dense_sum

SHAPES = {"layers.0.q_proj": (20, 24)}
HOSTILE = ("client_2", "client_5")
NOISE_RANKS = (6, 4, 4, 3, 3, 2, 2, 1)
NO_GUARD = Guard(norm_factor=None, examples_factor=None)

LOUD = {
    "scaled": attacks.Scaled(100.0),
    "noise": attacks.Noise(100.0),
    "halves": attacks.HarmlessHalves(),
    "inner product": attacks.InnerProduct(50.0),
}
"""Attacks that no honest client's norm reaches."""
QUIET = {
    "sign flipped": attacks.Scaled(-9.0),
    "inner product": attacks.InnerProduct(9.0, of_median=True),
    "claiming": attacks.Claiming(attacks.Scaled(-1.0)),
}
"""Attacks below the bounds of the guard, the last of them from the first round on."""


@cache
def trained() -> tuple[ClientUpdate, ...]:
    """Updates of eight clients: one direction that all share, and as much that is each client's own."""
    shared = adapter(2, seed=1, shapes=SHAPES)
    shared = shared.map(lambda factor: factor.scaled(1 / attacks.norm_of(shared)))
    updates: list[ClientUpdate] = []
    for k, rank in enumerate(NOISE_RANKS):
        own = adapter(rank, seed=100 + k, shapes=SHAPES)
        size = attacks.norm_of(own)
        factors = {name: stack([shared[name], own[name].scaled(1 / size)]) for name in SHAPES}
        updates.append(ClientUpdate(f"client_{k}", AdapterState.of(factors), 50 + 10 * k, 1))
    return tuple(updates)


def attacked(attack: attacks.Attack) -> list[ClientUpdate]:
    return attacks.infiltrated(trained(), HOSTILE, attack, torch.Generator().manual_seed(7))


def honest() -> list[ClientUpdate]:
    return [update for update in trained() if update.client_id not in HOSTILE]


def closed(
    updates: Sequence[ClientUpdate], guard: Guard, rule: str | None = None, *, earlier: bool = True
) -> tuple[set[str], float]:
    """Who was refused, and how far the round ends from the mean of the honest, over the norm of that mean."""
    federation = Federation(
        client_ranks={f"client_{k}": rank + 2 for k, rank in enumerate(NOISE_RANKS)},
        aggregator=Florist(EnergyThreshold(1.0)),
        shapes=SHAPES,
        seed=0,
        guard=guard,
        robust=MAKERS[rule](0.25) if rule is not None else None,
    )
    claims = {update.client_id: update.num_examples for update in trained()} if earlier else {}
    outcome = federation.close_round(ServerState.initial(), updates, (), claims)
    wanted = _whole({name: dense_sum(honest(), name) for name in SHAPES})
    found = _whole({name: outcome.state.cumulative[name].delta_weight() for name in SHAPES})
    return {drop.client_id for drop in outcome.dropped}, float((found - wanted).norm() / wanted.norm())


def _whole(modules: dict[str, Tensor]) -> Tensor:
    return torch.cat([modules[name].flatten() for name in sorted(modules)])


ALL = {**LOUD, **QUIET, "little is enough": attacks.LittleIsEnough(), "gauge": attacks.Gauge()}


@pytest.mark.parametrize("attack", ALL.values(), ids=list(ALL))
def test_an_attack_looks_like_what_its_client_trained(attack: attacks.Attack) -> None:
    for before, after in zip(trained(), attacked(attack), strict=True):
        assert after.client_id == before.client_id
        assert after.adapter.specs == before.adapter.specs
        if before.client_id not in HOSTILE:
            assert all(torch.equal(before.adapter[name].B, after.adapter[name].B) for name in SHAPES)


@pytest.mark.parametrize("attack", [*LOUD.values(), *QUIET.values()], ids=[*LOUD, *(f"quiet {name}" for name in QUIET)])
def test_the_plain_sum_follows_an_attack(attack: attacks.Attack) -> None:
    assert closed(trained(), NO_GUARD)[1] < 0.35
    refused, distance = closed(attacked(attack), NO_GUARD)
    assert not refused
    assert distance > 1.0  # further off than no update at all


@pytest.mark.parametrize("attack", LOUD.values(), ids=list(LOUD))
def test_the_guard_refuses_what_is_too_long(attack: attacks.Attack) -> None:
    refused, distance = closed(attacked(attack), Guard())
    assert refused == set(HOSTILE)
    assert distance < 1e-9


def test_a_claim_is_refused_once_there_was_another() -> None:
    updates = attacked(attacks.Claiming(attacks.Scaled(-1.0)))
    assert closed(updates, Guard())[0] == set(HOSTILE)
    assert closed(updates, Guard(), earlier=False)[0] == set()


@pytest.mark.parametrize("rule", MAKERS)
@pytest.mark.parametrize("attack", QUIET.values(), ids=list(QUIET))
def test_rules_bound_what_the_guard_lets_pass(attack: attacks.Attack, rule: str) -> None:
    refused, plain = closed(attacked(attack), Guard(), earlier=False)
    _, defended = closed(attacked(attack), Guard(), rule, earlier=False)
    assert not refused
    assert defended < 0.85
    assert defended < plain / 2


@pytest.mark.parametrize("attack", QUIET.values(), ids=list(QUIET))
def test_multi_krum_leaves_out_what_is_far_from_all_others(attack: attacks.Attack) -> None:
    assert closed(attacked(attack), Guard(), "multi-krum", earlier=False)[1] < 0.1


@pytest.mark.parametrize("rule", MAKERS)
def test_rules_bound_an_attack_without_the_guard(rule: str) -> None:
    assert closed(attacked(attacks.HarmlessHalves()), NO_GUARD, rule)[1] < 0.85


@pytest.mark.parametrize("name", ["sign flipped", "inner product"])
def test_a_bounded_cosine_refuses_what_points_away(name: str) -> None:
    refused, distance = closed(attacked(QUIET[name]), Guard(smallest_cosine=0.0))
    assert refused == set(HOSTILE)
    assert distance < 1e-9


def test_harmless_halves_are_within_ten_times_and_their_product_is_not() -> None:
    before, after = trained()[2].adapter, attacked(attacks.HarmlessHalves())[2].adapter
    for name in SHAPES:
        for half in ("A", "B"):
            was, now = (float(getattr(adapter[name], half).norm()) for adapter in (before, after))
            assert now == pytest.approx(9 * was)
    assert attacks.norm_of(after) > 81 * attacks.norm_of(before)


def test_the_guard_judges_the_product_and_not_its_halves() -> None:
    updates = attacked(attacks.Gauge(1e6))
    assert max(float(updates[2].adapter[name].B.norm()) for name in SHAPES) > 1e5
    assert closed(updates, Guard(norm_factor=1.5)) == (
        set(),
        pytest.approx(closed(trained(), NO_GUARD)[1], rel=1e-9),
    )


@pytest.mark.parametrize("rule", [None, *MAKERS])
def test_little_is_enough_passes_every_check_and_moves_every_rule(rule: str | None) -> None:
    """Not defended: an update that is no further from the others than they are from each other."""
    updates = attacked(attacks.LittleIsEnough(z=1.0))
    refused, distance = closed(updates, Guard(norm_factor=2.0, smallest_cosine=0.0), rule)
    assert not refused
    assert distance > closed(trained(), Guard(), rule)[1]


def test_noise_of_an_honest_norm_is_not_noticed_and_does_little() -> None:
    refused, distance = closed(attacked(attacks.Noise()), Guard())
    assert not refused
    assert distance < 0.6


def test_wrong_answers_are_all_wrong() -> None:
    examples = [
        {"instruction": "upper", "input": "oak", "output": "OAK"},
        {"instruction": "parity", "input": "oak", "output": "odd"},
    ]
    assert attacks.mislabelled(examples) == [
        {"instruction": "upper", "input": "oak", "output": "KAO"},
        {"instruction": "parity", "input": "oak", "output": "even"},
    ]
    assert examples[0]["output"] == "OAK"
