from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florist.data.partition import (
    REST,
    Partition,
    Partitioner,
    by_field,
    count_labels,
    dirichlet,
    hold_out,
    iid,
    shards,
)
from florist.errors import DataError

seeds = st.integers(0, 2**40)
labels = st.lists(st.sampled_from(["a", "b", "c", 1, None]), min_size=1, max_size=60)


def assert_every_example_once(partition: Partition, examples: int, clients: int) -> None:
    assert len(partition) == clients
    assert sorted(number for held in partition for number in held) == list(range(examples))
    assert all(held == sorted(held) for held in partition)


def skew(partition: Partition, labels: Sequence[str]) -> float:
    """Mean total variation distance between a client's labels and all: 0 for alike, near 1 for one label each."""
    whole = Counter(labels)
    distances: list[float] = []
    for held in partition:
        own = Counter(labels[number] for number in held)
        distances.append(sum(abs(own[x] / len(held) - whole[x] / len(labels)) for x in whole) / 2)
    return sum(distances) / len(distances)


@given(labels=labels, clients=st.integers(1, 12), seed=seeds)
def test_iid_deals_every_example_once_and_evenly(labels: list[str], clients: int, seed: int) -> None:
    if len(labels) < clients:
        with pytest.raises(
            DataError, match=f"expected at least {clients} examples to share out, got {len(labels)}; use"
        ):
            iid(labels, clients, seed)
        return
    found = iid(labels, clients, seed)
    assert_every_example_once(found, len(labels), clients)
    sizes = [len(held) for held in found]
    assert max(sizes) - min(sizes) <= 1
    assert found == iid(labels, clients, seed)


@given(labels=labels, clients=st.integers(1, 4), seed=seeds, min_examples=st.integers(0, 3), alpha=st.floats(1.0, 1e6))
@settings(max_examples=60)
def test_dirichlet_deals_every_example_once_and_keeps_the_minimum(
    labels: list[str], clients: int, seed: int, min_examples: int, alpha: float
) -> None:
    if len(labels) < 4 * clients * min_examples:
        return
    try:
        found = dirichlet(labels, clients, seed, alpha=alpha, min_examples=min_examples)
    except DataError as error:
        assert "no draw of 1000" in str(error)  # noqa: PT017  # allowed, and then the reason counts
        return
    assert_every_example_once(found, len(labels), clients)
    assert min(len(held) for held in found) >= min_examples
    assert found == dirichlet(labels, clients, seed, alpha=alpha, min_examples=min_examples)


@pytest.mark.parametrize("split", [iid, partial(dirichlet, alpha=0.5), shards], ids=["iid", "dirichlet", "shards"])
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
        assert min(len(held) for held in dirichlet(labels, 3, seed, alpha=0.5, min_examples=6)) >= 6
    # Without a minimum, the first draws leave somebody less.
    assert any(min(len(held) for held in dirichlet(labels, 3, seed, alpha=0.5)) < 6 for seed in range(10))


def test_the_default_alpha_is_one() -> None:
    labels = ["a", "b"] * 30
    assert dirichlet(labels, 3, 0) == dirichlet(labels, 3, 0, alpha=1.0, min_examples=1)


def test_dirichlet_says_when_no_draw_gives_every_client_its_minimum() -> None:
    with pytest.raises(
        DataError, match=r"expected Dirichlet\(0.001\) to give 3 clients at least 1 examples each.*raise"
    ):
        dirichlet(["only one label"] * 20, 3, 0, alpha=0.001)


def test_dirichlet_needs_the_minimum_for_every_client() -> None:
    with pytest.raises(DataError, match="expected at least 6 examples to share out, got 5"):
        dirichlet(["a"] * 5, 3, 0, min_examples=2)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_alpha_that_is_no_concentration_is_refused(alpha: float) -> None:
    with pytest.raises(DataError, match="expected a positive, finite Dirichlet concentration alpha, got"):
        dirichlet(["a", "b"] * 10, 2, 0, alpha=alpha)


@pytest.mark.parametrize("clients", [0, -1])
@pytest.mark.parametrize("split", [iid, dirichlet, shards, lambda labels, clients, seed: by_field(labels, clients)])
def test_rows_are_not_lost_to_no_clients(split: Partitioner, clients: int) -> None:
    with pytest.raises(DataError, match=f"expected at least one client, got {clients}"):
        split(["a", "b"], clients, 0)


@given(examples=st.integers(2, 200), fraction=st.floats(0.001, 0.999), seed=seeds)
def test_holding_out_splits_every_example_with_some_on_each_side(examples: int, fraction: float, seed: int) -> None:
    training, held = hold_out(examples, fraction, seed)
    assert sorted(training + held) == list(range(examples))
    assert training
    assert held
    assert training == sorted(training)
    assert held == sorted(held)
    assert abs(len(held) - fraction * examples) <= 1
    assert (training, held) == hold_out(examples, fraction, seed)


def test_another_seed_holds_other_rows_out() -> None:
    assert len({str(hold_out(50, 0.2, seed)) for seed in range(10)}) == 10


@pytest.mark.parametrize("examples", [0, 1])
def test_one_example_cannot_be_held_out_and_kept(examples: int) -> None:
    with pytest.raises(DataError, match=f"expected at least two examples to hold some out, got {examples}"):
        hold_out(examples, 0.5, 0)


@given(labels=labels, clients=st.integers(1, 8), seed=seeds, each=st.integers(1, 4))
def test_shards_deal_every_example_once_in_equal_shards(labels: list[str], clients: int, seed: int, each: int) -> None:
    if len(labels) < clients * each:
        with pytest.raises(
            DataError, match=f"expected at least {clients * each} examples to share out, got {len(labels)}"
        ):
            shards(labels, clients, seed, shards_per_client=each)
        return
    found = shards(labels, clients, seed, shards_per_client=each)
    assert_every_example_once(found, len(labels), clients)
    sizes = [len(held) for held in found]
    assert max(sizes) - min(sizes) <= each
    # A shard of sorted examples is contiguous: it holds no more labels than it crosses borders.
    order = sorted(range(len(labels)), key=lambda number: repr(labels[number]))
    rank = {number: position for position, number in enumerate(order)}
    for held in found:
        positions = sorted(rank[number] for number in held)
        assert sum(b - a > 1 for a, b in pairwise(positions)) < each
    assert found == shards(labels, clients, seed, shards_per_client=each)


def test_shards_give_each_client_few_labels() -> None:
    labels = [str(k % 10) for k in range(1000)]
    for seed in range(5):
        found = shards(labels, 10, seed)
        assert all(len({labels[number] for number in held}) <= 2 for held in found)
        assert all(len(held) == 100 for held in found)
    assert all(len({labels[number] for number in held}) > 5 for held in shards(labels, 10, 0, shards_per_client=20))


def test_a_client_gets_a_shard_at_least() -> None:
    with pytest.raises(DataError, match="expected at least one shard a client, got 0"):
        shards(["a", "b"], 1, 0, shards_per_client=0)


@given(labels=labels, clients=st.integers(1, 5))
def test_by_field_never_divides_a_value(labels: list[str], clients: int) -> None:
    values = len(set(labels))
    if values < clients:
        with pytest.raises(DataError, match=r"expected at least \d+ (values|examples) to"):
            by_field(labels, clients)
        return
    found = by_field(labels, clients)
    assert_every_example_once(found, len(labels), clients)
    owners = [{labels[number] for number in held} for held in found]
    assert sum(len(own) for own in owners) == values
    assert max(len(own) for own in owners) - min(len(own) for own in owners) <= 1


def test_by_field_deals_round_in_the_order_of_the_values() -> None:
    assert by_field(["c", "a", "b", "a", "d"], 2) == [[0, 1, 3], [2, 4]]


def test_counting_labels_shows_who_has_which() -> None:
    found = count_labels({"x": ["b", "a", "b"], "y": [], "z": ["c", None]})
    assert found.clients == ("x", "y", "z")
    assert found.labels == ("None", "a", "b", "c")
    assert found.counts == ((0, 1, 2, 0), (0, 0, 0, 0), (1, 0, 0, 1))


@given(
    held=st.dictionaries(st.text(max_size=3), st.lists(st.integers(0, 30), max_size=40), max_size=5),
    most=st.integers(1, 8),
)
def test_counting_labels_loses_no_row_and_keeps_the_commonest(held: dict[str, list[int]], most: int) -> None:
    found = count_labels(held, max_labels=most)
    assert [sum(counts) for counts in found.counts] == [len(own) for own in held.values()]
    assert len(found.labels) <= most
    if REST in found.labels:
        assert found.labels[-1] == REST
        whole = Counter(str(label) for own in held.values() for label in own)
        rarest = min((whole[label] for label in found.labels[:-1]), default=0)
        assert all(whole[label] <= rarest for label in whole.keys() - set(found.labels)) or most == 1


def test_another_purpose_holds_other_rows_out() -> None:
    assert hold_out(50, 0.2, 0) != hold_out(50, 0.2, 0, "validation")
