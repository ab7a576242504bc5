"""Numbers in a sum modulo 2^64: exact, and never carried into a neighbour."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florist.errors import ConfigurationError, NonFiniteUpdateError
from florist.privacy.fixed_point import FixedPoint


@given(st.integers(2, 64), st.integers(1, 200), st.integers(0, 40), st.integers(0, 2**32), st.data())
@settings(max_examples=200)
def test_the_sum_of_words_is_the_sum_of_the_rounded_numbers(
    bits: int, terms: int, count: int, seed: int, data: st.DataObject
) -> None:
    if (1 << bits) - 1 < 2 * terms:
        with pytest.raises(ConfigurationError, match="does not fit"):
            FixedPoint(bits, terms)
        return
    numbers = FixedPoint(bits, terms)
    rng = np.random.default_rng(seed)
    used = data.draw(st.integers(1, terms))
    # The extremes are what could wrap.
    values = rng.choice([-1.0, 1.0, 0.0, 3.0, -7.0], size=(used, count)) * rng.choice([1.0, rng.random()], size=count)
    total = np.zeros(numbers.words(count), dtype=np.uint64)
    for each in values:
        total = total + numbers.encoded(each)
    levels = [np.rint(numbers.rounded(each) * numbers.levels).astype(np.int64) for each in values]
    assert np.array_equal(numbers.levels_in(total, used, count), sum(levels))
    assert np.allclose(numbers.decoded(total, used, count), sum(numbers.rounded(each) for each in values))


@pytest.mark.parametrize(("terms", "bits", "per_word"), [(8, 7, 9), (8, 32, 2), (100, 11, 5), (32, 9, 7)])
def test_how_many_numbers_share_a_word(terms: int, bits: int, per_word: int) -> None:
    numbers = FixedPoint(bits, terms)
    assert numbers.numbers_per_word == per_word
    assert numbers.levels >= 5
    assert 2 * numbers.levels * terms < 1 << bits


def test_rounding_is_to_the_nearest_level() -> None:
    numbers = FixedPoint(32, 8)
    values = np.linspace(-1, 1, 1001)
    assert np.abs(numbers.rounded(values) - values).max() <= 0.5 / numbers.levels


def test_what_is_not_finite_is_refused() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(NonFiniteUpdateError, match="NaN or infinity"):
            FixedPoint(32, 8).encoded(np.array([0.0, bad]))


@pytest.mark.parametrize("bits", [1, 65])
def test_other_bits_are_refused(bits: int) -> None:
    with pytest.raises(ConfigurationError, match="2 to 64"):
        FixedPoint(bits, 1)
