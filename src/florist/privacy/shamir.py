"""Shamir's secret sharing: any threshold of the shares gives the secret, and one fewer gives nothing.

Source: A. Shamir, How to share a secret, Communications of the ACM 22 (1979).
"""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from florist.errors import BrokenSharesError


@dataclass(frozen=True, slots=True)
class Field:
    """The integers modulo a prime, in which secrets are shared.

    Attributes:
        prime: the prime; a secret is below it.
    """

    prime: int

    def shared(self, secret: int, threshold: int, holders: Iterable[int]) -> dict[int, int]:
        """A share of a secret for each holder: a value of a random polynomial whose value at 0 is the secret.

        Args:
            secret: from 0 to the prime less one.
            threshold: how many shares give the secret back.
            holders: the places of the polynomial, unlike each other, from 1 to the prime less one.

        Raises:
            ValueError: there are fewer holders than the threshold, or a number is out of range.

        Cost: `threshold` multiplications a holder. The coefficients come from the system's source of randomness.
        """
        places = list(holders)
        if not 0 <= secret < self.prime:
            raise ValueError("expected a secret from 0 to the prime less one")
        if not 1 <= threshold <= len(places):
            raise ValueError(f"expected a threshold from 1 to the {len(places)} holders, got {threshold}")
        if len(set(places)) != len(places) or not all(0 < place < self.prime for place in places):
            raise ValueError("expected holders that differ, from 1 to the prime less one")
        coefficients = [secret, *(secrets.randbelow(self.prime) for _ in range(threshold - 1))]
        return {place: self._value(coefficients, place) for place in places}

    def weights(self, holders: Iterable[int]) -> dict[int, int]:
        """By what each share is multiplied so that their sum is the secret: Lagrange's polynomials at 0.

        They depend on the holders alone, and serve for all secrets that the same holders have shares of.

        Raises:
            ValueError: a holder comes twice, or is out of range.

        Cost: the square of the number of holders, in multiplications.
        """
        places = list(holders)
        if len(set(places)) != len(places) or not all(0 < place < self.prime for place in places):
            raise ValueError("expected holders that differ, from 1 to the prime less one")
        found: dict[int, int] = {}
        for place in places:
            above, below = 1, 1
            for other in places:
                if other != place:
                    above = above * other % self.prime
                    below = below * (other - place) % self.prime
            found[place] = above * pow(below, -1, self.prime) % self.prime
        return found

    def secret(self, shares: Mapping[int, int], weights: Mapping[int, int] | None = None) -> int:
        """The secret that shares belong to; something else where they are too few, or belong to several secrets.

        Args:
            shares: at least the threshold, by holder.
            weights: those of the same holders, where they are known.
        """
        known = weights if weights is not None else self.weights(shares)
        return sum(share * known[place] for place, share in shares.items()) % self.prime

    def _value(self, coefficients: list[int], place: int) -> int:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * place + coefficient) % self.prime
        return value


SECRET_BYTES = 32
SHARE_BYTES = 33
FIELD = Field(2**256 + 297)
"""The field for secrets of 32 bytes: the smallest prime above all of them."""


def share_bytes(secret: bytes, threshold: int, holders: Iterable[int]) -> dict[int, bytes]:
    """A share of a secret of 32 bytes for each holder, in 33 bytes.

    Raises:
        ValueError: the secret has another length, or `Field.shared` refuses the numbers.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"expected a secret of {SECRET_BYTES} bytes, got {len(secret)}")
    shares = FIELD.shared(int.from_bytes(secret, "big"), threshold, holders)
    return {place: share.to_bytes(SHARE_BYTES, "big") for place, share in shares.items()}


def join_bytes(shares: Mapping[int, bytes], weights: Mapping[int, int] | None = None) -> bytes:
    """The secret of 32 bytes that shares belong to.

    Args:
        shares: at least the threshold, by holder.
        weights: `Field.weights` of the same holders, where they are known.

    Raises:
        BrokenSharesError: the shares do not belong together, or one has another length. Not all wrong shares are found.
    """
    if any(len(share) != SHARE_BYTES for share in shares.values()):
        raise BrokenSharesError(f"expected shares of {SHARE_BYTES} bytes; leave the round out")
    secret = FIELD.secret({place: int.from_bytes(share, "big") for place, share in shares.items()}, weights)
    if secret >= 1 << (8 * SECRET_BYTES):
        raise BrokenSharesError("expected shares of one secret, and these do not belong together; leave the round out")
    return secret.to_bytes(SECRET_BYTES, "big")
