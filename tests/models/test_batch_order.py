"""Batches of examples of about the same length: each example once a pass, little padding, and no length preferred."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from florist.models.batch_order import grouped_by_length


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batches(lengths: list[int], size: int, seed: int) -> list[list[int]]:
    order = grouped_by_length(lengths, size, draw(seed))
    return [[lengths[i] for i in order[start : start + size]] for start in range(0, len(order), size)]


@given(st.lists(st.integers(1, 99), max_size=60), st.integers(1, 9), st.integers(0, 9))
def test_every_example_comes_once(lengths: list[int], size: int, seed: int) -> None:
    order = grouped_by_length(lengths, size, draw(seed))
    assert sorted(order) == list(range(len(lengths)))
    assert order == grouped_by_length(lengths, size, draw(seed))


def test_a_batch_pads_little() -> None:
    lengths = torch.randint(1, 100, (1000,), generator=draw(0)).tolist()
    padding = [sum(max(each) - length for length in each) for each in batches(lengths, 8, 1)]
    assert sum(padding) < 0.05 * sum(lengths)


def test_few_steps_see_every_length() -> None:
    lengths = list(range(400))
    seen = [length for seed in range(200) for each in batches(lengths, 4, seed)[:4] for length in each]
    assert abs(sum(seen) / len(seen) - 199.5) < 16  # four deviations of the mean of 800 batches
    assert len(set(seen)) > 390


def test_what_fills_no_batch_is_of_any_length_and_comes_last() -> None:
    lengths = list(range(102))
    last = [batches(lengths, 4, seed)[-1] for seed in range(200)]
    assert {len(each) for each in last} == {2}
    assert abs(sum(sum(each) for each in last) / 400 - 50.5) < 6
