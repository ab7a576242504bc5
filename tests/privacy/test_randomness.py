"""Numbers and draws that nobody can repeat have the distribution that is counted on."""

import math

import pytest
import torch

from florist.privacy.randomness import drawn_in_secret, each_in_secret, normal_numbers


def test_numbers_of_the_system_are_standard_normal() -> None:
    count = 200_001
    numbers = normal_numbers((3, count // 3), None).reshape(-1)
    assert numbers.dtype == torch.float64
    assert len(numbers.unique()) == count
    ordered = numbers.sort().values
    expected = 0.5 * (1 + torch.erf(ordered / math.sqrt(2)))
    found = torch.arange(1, count + 1, dtype=torch.float64) / count
    # Kolmogorov and Smirnov: 1 in 10^6 is above 2.7 / sqrt(count).
    assert float((found - expected).abs().max()) < 2.7 / math.sqrt(count)
    # The two halves of a pair come from the same radius, and are independent all the same.
    half = count // 2
    assert abs(float(torch.corrcoef(torch.stack([numbers[:half], numbers[half + 1 :]]))[0, 1])) < 6 / math.sqrt(half)
    assert not torch.equal(normal_numbers((5,), None), normal_numbers((5,), None))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0), (4, 3)])
def test_any_shape_is_drawn(shape: tuple[int, ...]) -> None:
    assert normal_numbers(shape, None).shape == shape


def test_numbers_of_a_seed_are_those_of_torch() -> None:
    found = normal_numbers((7,), torch.Generator().manual_seed(5))
    assert torch.equal(found, torch.randn(7, generator=torch.Generator().manual_seed(5), dtype=torch.float64))


def test_draws_are_as_likely_as_they_say() -> None:
    drawn = [drawn_in_secret("abcde", 2) for _ in range(2000)]
    assert all(len(set(each)) == 2 for each in drawn)
    assert sum("a" in each for each in drawn) / 2000 == pytest.approx(0.4, abs=0.06)
    assert sum(len(each_in_secret("abcde", 0.3)) for _ in range(2000)) / 10_000 == pytest.approx(0.3, abs=0.03)
