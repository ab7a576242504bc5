import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from florist.comparison.intervals import Estimate, estimate, student_975


def probability_below(t: float, degrees: int) -> float:
    """Of Student's t, by integrating its density from 0."""
    x = np.linspace(0.0, t, 20_001)
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    density = scale * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)
    return 0.5 + float(np.sum((density[1:] + density[:-1]) / 2) * (x[1] - x[0]))


@pytest.mark.parametrize("degrees", [*range(1, 31), 31, 40, 60, 120, 1000])
def test_the_quantiles_are_those_of_students_t(degrees: int) -> None:
    assert probability_below(student_975(degrees), degrees) == pytest.approx(0.975, abs=5e-6)


def test_the_quantiles_fall_towards_the_normal_one() -> None:
    quantiles = [student_975(degrees) for degrees in range(1, 200)]
    assert quantiles == sorted(quantiles, reverse=True)
    assert student_975(10**9) == pytest.approx(1.959964)


def test_the_interval_of_three_seeds() -> None:
    # Mean 2, standard deviation 1, 4.3027 / sqrt(3).
    found = estimate([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.mean, found.count, found.lowest, found.highest) == (2.0, 3, 1.0, 3.0)
    assert found.half_width == pytest.approx(2.48414, abs=1e-4)
    assert found.low == pytest.approx(2 - 2.48414, abs=1e-4)
    assert found.high == pytest.approx(2 + 2.48414, abs=1e-4)
    assert found.sign == 0


def test_one_value_has_no_interval_and_none_no_estimate() -> None:
    one = Estimate(1.5, None, 1, lowest=1.5, highest=1.5)
    assert estimate([1.5]) == one
    assert one.low is one.high is one.sign is None
    assert estimate([]) is None


@pytest.mark.parametrize(
    ("values", "sign"), [([1.0, 1.1, 0.9], 1), ([-1.0, -1.1, -0.9], -1), ([0.0, 0.0], 0), ([-1.0, 1.0], 0)]
)
def test_the_sign_is_that_of_the_whole_interval(values: list[float], sign: int) -> None:
    found = estimate(values)
    assert found is not None
    assert found.sign == sign


def test_huge_values_do_not_overflow() -> None:
    found = estimate([1e300, 3e300])
    assert found is not None
    assert found.half_width == pytest.approx(12.7062e300)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40), st.floats(-1e6, 1e6), st.floats(0.1, 10.0))
def test_the_interval_moves_and_stretches_with_the_values(values: list[float], shift: float, factor: float) -> None:
    found, moved = estimate(values), estimate([factor * value + shift for value in values])
    assert found is not None
    assert moved is not None
    assert found.half_width is not None
    assert moved.mean == pytest.approx(factor * found.mean + shift, abs=1e-6)
    assert moved.half_width == pytest.approx(factor * found.half_width, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_interval_covers_the_mean_in_nineteen_of_twenty_samples(count: int) -> None:
    samples = np.random.default_rng(0).normal(3.0, 2.0, size=(4000, count))
    covered = sum(
        abs(found.mean - 3.0) <= (found.half_width or 0.0) for sample in samples.tolist() if (found := estimate(sample))
    )
    assert covered / len(samples) == pytest.approx(0.95, abs=0.015)
