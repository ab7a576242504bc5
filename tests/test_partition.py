from collections import Counter
from collections.abc import Sequence
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florist.errors import DataError
from florist.partition import Partition, Partitioner, dirichlet, hold_out, iid

seeds = st.integers(0, 2**40)
labels = st.lists(st.sampled_from(["a", "b", "c", 1, None]), min_size=1, max_size=60)


def assert_every_row_once(partition: Partition, rows: int, clients: int) -> None:
    assert len(partition) == clients
    assert sorted(row for held in partition for row in held) == list(range(rows))
    assert all(held == sorted(held) for held in partition)


def skew(partition: Partition, labels: Sequence[str]) -> float:
    """Mean total variation distance between a client's labels and all: 0 for alike, near 1 for one label each."""
    whole = Counter(labels)
    distances: list[float] = []
    for held in partition:
        own = Counter(labels[row] for row in held)
        distances.append(sum(abs(own[x] / len(held) - whole[x] / len(labels)) for x in whole) / 2)
    return sum(distances) / len(distances)


@given(labels=labels, clients=st.integers(1, 12), seed=seeds)
def test_iid_deals_every_row_once_and_evenly(labels: list[str], clients: int, seed: int) -> None:
    if len(labels) < clients:
        with pytest.raises(DataError, match=f"expected at least {clients} rows to share out, got {len(labels)}; use"):
            iid(labels, clients, seed)
        return
    found = iid(labels, clients, seed)
    assert_every_row_once(found, len(labels), clients)
    sizes = [len(held) for held in found]
    assert max(sizes) - min(sizes) <= 1
    assert found == iid(labels, clients, seed)


@given(labels=labels, clients=st.integers(1, 4), seed=seeds, min_rows=st.integers(0, 3), alpha=st.floats(1.0, 1e6))
@settings(max_examples=60)
def test_dirichlet_deals_every_row_once_and_keeps_the_minimum(
    labels: list[str], clients: int, seed: int, min_rows: int, alpha: float
) -> None:
    if len(labels) < 4 * clients * min_rows:
        return
    try:
        found = dirichlet(labels, clients, seed, alpha=alpha, min_rows=min_rows)
    except DataError as error:
        assert "no draw of 1000" in str(error)  # noqa: PT017  # allowed, and then the reason counts
        return
    assert_every_row_once(found, len(labels), clients)
    assert min(len(held) for held in found) >= min_rows
    assert found == dirichlet(labels, clients, seed, alpha=alpha, min_rows=min_rows)


@pytest.mark.parametrize("split", [iid, partial(dirichlet, alpha=0.5)], ids=["iid", "dirichlet"])
def test_another_seed_gives_another_split(split: Partitioner) -> None:
    labels = ["a", "b", "c", "d"] * 25
    assert len({str(split(labels, 4, seed)) for seed in range(10)}) == 10


def test_a_smaller_alpha_gives_clients_that_are_less_alike() -> None:
    labels = [label for label in "abcdefgh" for _ in range(100)]
    found = {
        alpha: sum(skew(dirichlet(labels, 6, seed, alpha=alpha), labels) for seed in range(5)) / 5
        for alpha in (0.05, 0.5, 5.0, 1000.0)
    }
    ordered = list(found.values())
    assert ordered == sorted(ordered, reverse=True)
    assert found[0.05] > 0.6
    assert found[1000.0] < 0.03
    # As large alphas promise: no further from alike than shuffling and dealing.
    assert found[1000.0] < sum(skew(iid(labels, 6, seed), labels) for seed in range(5)) / 5


def test_draws_are_repeated_until_every_client_has_its_minimum() -> None:
    labels = ["a", "b", "c"] * 10
    for seed in range(10):
        assert min(len(held) for held in dirichlet(labels, 3, seed, alpha=0.5, min_rows=6)) >= 6
    # Without a minimum, the first draws leave somebody less.
    assert any(min(len(held) for held in dirichlet(labels, 3, seed, alpha=0.5)) < 6 for seed in range(10))


def test_the_default_alpha_is_one() -> None:
    labels = ["a", "b"] * 30
    assert dirichlet(labels, 3, 0) == dirichlet(labels, 3, 0, alpha=1.0, min_rows=1)


def test_dirichlet_says_when_no_draw_gives_every_client_its_minimum() -> None:
    with pytest.raises(DataError, match=r"expected Dirichlet\(0.001\) to give 3 clients at least 1 rows each.*raise"):
        dirichlet(["only one label"] * 20, 3, 0, alpha=0.001)


def test_dirichlet_needs_the_minimum_for_every_client() -> None:
    with pytest.raises(DataError, match="expected at least 6 rows to share out, got 5"):
        dirichlet(["a"] * 5, 3, 0, min_rows=2)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_alpha_that_is_no_concentration_is_refused(alpha: float) -> None:
    with pytest.raises(DataError, match="expected a positive, finite Dirichlet concentration alpha, got"):
        dirichlet(["a", "b"] * 10, 2, 0, alpha=alpha)


@pytest.mark.parametrize("clients", [0, -1])
@pytest.mark.parametrize("split", [iid, dirichlet])
def test_rows_are_not_lost_to_no_clients(split: Partitioner, clients: int) -> None:
    with pytest.raises(DataError, match=f"expected at least one client, got {clients}"):
        split(["a", "b"], clients, 0)


@given(rows=st.integers(2, 200), fraction=st.floats(0.001, 0.999), seed=seeds)
def test_holding_out_splits_every_row_with_some_on_each_side(rows: int, fraction: float, seed: int) -> None:
    training, held = hold_out(rows, fraction, seed)
    assert sorted(training + held) == list(range(rows))
    assert training
    assert held
    assert training == sorted(training)
    assert held == sorted(held)
    assert abs(len(held) - fraction * rows) <= 1
    assert (training, held) == hold_out(rows, fraction, seed)


def test_another_seed_holds_other_rows_out() -> None:
    assert len({str(hold_out(50, 0.2, seed)) for seed in range(10)}) == 10


@pytest.mark.parametrize("rows", [0, 1])
def test_one_row_cannot_be_held_out_and_kept(rows: int) -> None:
    with pytest.raises(DataError, match=f"expected at least two rows to hold some out, got {rows}"):
        hold_out(rows, 0.5, 0)
