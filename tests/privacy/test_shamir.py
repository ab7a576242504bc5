"""Shares of a secret: enough of them give it back, and fewer tell nothing."""

from collections import Counter
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florist.errors import BrokenSharesError
from florist.privacy.shamir import FIELD, SHARE_BYTES, Field, join_bytes, share_bytes

SMALL = Field(7)


@given(st.binary(min_size=32, max_size=32), st.data())
def test_any_threshold_of_the_shares_gives_the_secret(secret: bytes, data: st.DataObject) -> None:
    holders = data.draw(st.integers(1, 12))
    threshold = data.draw(st.integers(1, holders))
    shares = share_bytes(secret, threshold, range(1, holders + 1))
    left = data.draw(st.permutations(range(1, holders + 1)))[: data.draw(st.integers(threshold, holders))]
    assert join_bytes({place: shares[place] for place in left}) == secret
    assert all(len(share) == SHARE_BYTES for share in shares.values())


def test_one_share_fewer_than_the_threshold_fits_every_secret_equally_often() -> None:
    """Exhaustive in the field of seven: all polynomials of degree 2, all pairs of four holders."""
    threshold, holders = 3, (1, 2, 3, 4)
    for pair in combinations(holders, threshold - 1):
        seen = {
            secret: Counter(
                tuple(_value((secret, *rest), place) for place in pair) for rest in product(range(7), repeat=2)
            )
            for secret in range(7)
        }
        assert all(counts == seen[0] for counts in seen.values())


def _value(coefficients: tuple[int, ...], place: int) -> int:
    return sum(c * place**i for i, c in enumerate(coefficients)) % 7


def test_shares_are_values_of_a_random_polynomial_of_the_right_degree() -> None:
    counts: Counter[tuple[int, int]] = Counter()
    for _ in range(4000):
        shares = SMALL.shared(5, 3, (1, 2, 3))
        assert SMALL.secret(shares) == 5
        counts[shares[1], shares[2]] += 1
    # All 49 pairs come about equally often: 81.6 each, with a standard deviation of 9.
    assert len(counts) == 49
    assert all(35 < count < 135 for count in counts.values())


def test_the_prime_is_the_smallest_above_all_secrets() -> None:
    def is_prime(number: int) -> bool:
        odd, twos = number - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
            x = pow(base, odd, number)
            if x not in {1, number - 1} and all((x := x * x % number) != number - 1 for _ in range(twos - 1)):
                return False
        return True

    assert is_prime(FIELD.prime)
    assert not any(is_prime(2**256 + k) for k in range(1, 297, 2))


@pytest.mark.parametrize("holders", [(1, 1, 2), (0, 1, 2), (1, 2, 7)])
def test_holders_are_refused(holders: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="differ"):
        SMALL.shared(1, 2, holders)
    with pytest.raises(ValueError, match="differ"):
        SMALL.weights(holders)


@pytest.mark.parametrize("threshold", [0, 4])
def test_a_threshold_that_cannot_be_reached_is_refused(threshold: int) -> None:
    with pytest.raises(ValueError, match="threshold"):
        SMALL.shared(1, threshold, (1, 2, 3))


def test_shares_of_another_length_and_secrets_of_another_length_are_refused() -> None:
    with pytest.raises(BrokenSharesError, match="33 bytes"):
        join_bytes({1: b"short"})
    with pytest.raises(ValueError, match="32 bytes"):
        share_bytes(b"short", 1, [1])
    with pytest.raises(ValueError, match="secret"):
        SMALL.shared(7, 1, [1])
