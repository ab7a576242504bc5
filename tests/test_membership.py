"""What is seen of private rounds tells as much of a client as the noise allows, and no more; and no less.

The clients' updates are drawn; what the demonstration tells is in docs/privacy.md, by ``benchmarks/membership.py``.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from florist.federation.private_rounds import PrivateRounds
from florist.federation.protections import Noise
from florist.federation.state import ServerState
from florist.privacy.accounting import Accountant, Sampling, noise_for
from tests.federation.private_federations import RANKS, all_trained, federation
from tests.membership import (
    Guesses,
    KnownRound,
    Separation,
    epsilon_shown,
    evidence_of,
    likelihood_ratios,
    permitted_advantage,
    possible_advantage,
)

CLIP, DELTA, RUNS = 0.5, 1e-3, 500
ROUNDS = 2


@pytest.fixture(autouse=True)
def accounted() -> None:
    """What accounts for noise is in an extra."""
    pytest.importorskip("dp_accounting")


def accountant(epsilon: float, sampling: Sampling) -> Accountant:
    clients, asked = len(RANKS), len(RANKS) if sampling is Sampling.FIXED else 3
    multiplier = noise_for(epsilon, ROUNDS, delta=DELTA, clients=clients, asked=asked, sampling=sampling)
    return Accountant(multiplier, DELTA, clients, asked, sampling)


def known_rounds(noise: Noise | None, sampling: Sampling) -> list[KnownRound]:
    """Rounds of five clients with updates longer than the clip, of which the adversary knows all but one thing."""
    private = PrivateRounds(clip=CLIP, noise=noise)
    rules = federation(fraction=1.0 if sampling is Sampling.FIXED else 0.6)
    rounds: list[KnownRound] = []
    for number in range(ROUNDS):
        state = replace(ServerState.initial(), round_number=number)
        updates = all_trained(rules, state, seed=number)
        instead = -1.0 if sampling is Sampling.FIXED else 0.0
        rounds.append(KnownRound.of(private, rules, state, updates, "c", instead))
    return rounds


def guesses(rounds: list[KnownRound]) -> Guesses:
    present = evidence_of(rounds, RUNS, member=True, first_seed=0)
    absent = evidence_of(rounds, RUNS, member=False, first_seed=RUNS)
    return Guesses.at(0.0, present, absent)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", Sampling)
@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_the_best_attacker_has_the_advantage_that_the_noise_allows(epsilon: float, sampling: Sampling) -> None:
    accounted_for = accountant(epsilon, sampling)
    found = guesses(known_rounds(Noise(accounted_for), sampling))
    possible = possible_advantage(accounted_for, ROUNDS)
    low, high = found.interval()
    assert low <= possible <= high  # not less either: noise that is larger than accounted for would show here
    assert high < permitted_advantage(epsilon, DELTA)


@pytest.mark.slow
@pytest.mark.parametrize(("epsilon", "factor"), [(1.0, 1 / 3), (3.0, 1 / 3), (3.0, 3.0)])
def test_it_shows_where_the_noise_is_not_what_was_accounted_for(epsilon: float, factor: float) -> None:
    sampling = Sampling.FIXED
    accounted_for = accountant(epsilon, sampling)
    wrong = replace(accounted_for, noise_multiplier=factor * accounted_for.noise_multiplier)
    low, high = guesses(known_rounds(Noise(wrong), sampling)).interval()
    possible = possible_advantage(accounted_for, ROUNDS)
    assert low > possible if factor < 1 else high < possible


@pytest.mark.slow
def test_without_noise_the_best_attacker_is_never_wrong() -> None:
    assert guesses(known_rounds(None, Sampling.FIXED)).advantage == 1.0


@pytest.mark.slow
def test_without_noise_only_a_draw_hides_a_client() -> None:
    found = guesses(known_rounds(None, Sampling.POISSON))
    assert found.false_alarms == 0
    assert found.interval()[0] < 1 - 0.4**ROUNDS < found.interval()[1]


@pytest.mark.parametrize("sampling", Sampling)
def test_the_attacker_sees_what_the_engine_computes(sampling: Sampling) -> None:
    """The noisy sum that it is shown is the broadcast of the round, times the number of clients asked."""
    known = known_rounds(Noise(accountant(3.0, sampling)), sampling)[0]
    rules, private = known.federation, known.private
    drawn = private.participants(rules, 1)
    updates = [each for each in all_trained(rules, known.state) if each.client_id in drawn]
    closed = private.closed(rules, known.state, updates)
    seen = known.noisy(rules, known.sum_of(drawn))
    rows = rules.rows(known.state, max(RANKS, key=RANKS.__getitem__))
    for name, factor in closed.state.global_adapter.items():
        A = rows(name).double()
        B = factor.delta_weight().double() @ torch.linalg.pinv(A)
        expected = seen.B[name] / (rules.clients_per_round * float(A.norm(dim=1)[0]))
        assert torch.allclose(B, expected, atol=1e-5 * float(expected.norm())), name


def test_a_clip_binds_what_the_attacker_looks_for() -> None:
    for known in known_rounds(Noise(accountant(1.0, Sampling.FIXED)), Sampling.FIXED):
        assert known.own.norm == pytest.approx(CLIP, rel=1e-5)


def test_evidence_of_a_gaussian_shows_an_epsilon_below_its_own() -> None:
    random = np.random.default_rng(0)
    own = Accountant(1.0, DELTA, 5, 5, Sampling.POISSON)
    present, absent = random.normal(0.5, 1, 4_000), random.normal(-0.5, 1, 4_000)
    assert 1.0 < epsilon_shown(present, absent, DELTA) < own.epsilon(1)


def test_shadow_runs_find_who_moves_a_number() -> None:
    random = np.random.default_rng(0)
    members = random.random((60, 8)) < 0.5
    moved = random.normal(size=members.shape) - 3.0 * members
    found = Separation.of(likelihood_ratios(moved, members), members, draws=50)
    assert found.advantage[0] == pytest.approx(0.866, abs=0.06)  # 2 Phi(3 / 2) - 1
    assert found.auc[1] < 0.983 < found.auc[2] + 0.01  # Phi(3 / sqrt 2)
    nothing = Separation.of(likelihood_ratios(random.normal(size=members.shape), members), members, draws=50)
    assert nothing.advantage[1] < 0.0 < nothing.advantage[2] or abs(nothing.advantage[0]) < 0.1
