"""Populations by rank, and what rounds may expect of them."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from florist.errors import ConfigurationError
from florist.planning.absences import absences
from florist.planning.kept import KeptRanks, parse_kept
from florist.planning.population import Population, parse_ranks


@given(
    counts=st.dictionaries(st.integers(1, 64), st.integers(1, 3), min_size=1, max_size=3), fraction=st.floats(0.1, 1)
)
def test_expectations_are_means_over_all_draws(counts: dict[int, int], fraction: float) -> None:
    population = Population(counts, fraction)
    everybody = [rank for rank, count in counts.items() for _ in range(count)]
    draws = list(combinations(everybody, population.asked))
    assert population.expected_largest == pytest.approx(sum(map(max, draws)) / len(draws))
    assert population.expected_smallest == pytest.approx(sum(map(min, draws)) / len(draws))
    assert population.asked_sum(lambda rank: rank) == pytest.approx(sum(map(sum, draws)) / len(draws))


def test_a_million_clients_are_five_numbers() -> None:
    population = Population(parse_ranks("4:40,8:20,16:20,32:10,64:10", 10**6), 1e-5)
    assert (population.clients, population.asked) == (10**6, 10)
    # With replacement it would be P(a rank of 64 among 10) = 1 - 0.9^10.
    assert population.expected_largest == pytest.approx(64 * (1 - 0.9**10) + 32 * (0.9**10 - 0.8**10), rel=0.05)


@pytest.mark.parametrize(
    ("text", "clients", "counts"),
    [
        ("64,32,16,16", None, {64: 1, 32: 1, 16: 2}),
        ("16", 8, {16: 8}),
        ("4:40, 8:20", None, {4: 40, 8: 20}),
        ("4:40,8:20", 600, {4: 400, 8: 200}),
        ("4:2,8", 3, {4: 2, 8: 1}),
    ],
)
def test_ranks_are_listed_or_counted(text: str, clients: int | None, counts: dict[int, int]) -> None:
    assert parse_ranks(text, clients) == counts


@pytest.mark.parametrize("text", ["", "0", "4:0", "4:", "a", "4;8", "-4", "4:40,8:20,"])
def test_other_ranks_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--ranks: expected ranks as 64,32,16, or rank:clients"):
        parse_ranks(text)


def test_numbers_of_clients_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="--ranks names 3 clients and --clients says 8"):
        parse_ranks("4,8,16", 8)
    with pytest.raises(ConfigurationError, match="a fraction of the clients"):
        Population({4: 1}, 0.0)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("share", "rounds"), [(0.5, 3), (0.1, 2), (0.05, 40), (0.3, 1), (1.0, 30)])
def test_absences_are_those_of_every_history(share: float, rounds: int, packed: bool) -> None:
    missed: dict[int, float] = {}
    whole = np.zeros(rounds)
    none = 0.0
    for t in range(1, rounds + 1):
        # The last round before t in which the client took part; 0 for none, which is before the first.
        for last in range(t):
            probability = (share if last else 1.0) * (1 - share) ** (t - 1 - last) / rounds
            lacks = t - 1 - last
            if lacks == 0:
                none += probability
            elif lacks > 16 or (last == 0 and lacks > 1 and not packed):
                whole[t - 1] += probability
            else:
                missed[lacks] = missed.get(lacks, 0.0) + probability
    found = absences(share, rounds, packed=packed)
    assert {d: w for d, w in found.missed.items() if w} == pytest.approx({d: w for d, w in missed.items() if w})
    np.testing.assert_allclose(found.whole, whole, atol=1e-15)
    assert found.any + none == pytest.approx(1.0)


def test_what_tau_keeps_is_a_rank_or_a_total() -> None:
    modules = ["a", "b"]
    assert parse_kept("9", dict.fromkeys(modules)).of("a") == 9
    assert parse_kept("total:5", dict.fromkeys(modules)).of("b") == 2.5
    assert KeptRanks().of("a") == float("inf")
    with pytest.raises(ConfigurationError, match="at least 1 for each of the 2 modules"):
        parse_kept("total:1", dict.fromkeys(modules))


@pytest.mark.parametrize("text", ["0", "nine", "total:", "sum:9", ""])
def test_other_ranks_after_tau_are_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="--tau-rank: expected a rank for every module as 9"):
        parse_kept(text, {"a": None})
