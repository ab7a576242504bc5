"""Real numbers as integers whose sum is exact, whatever the order, and cannot wrap."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from florist.errors import ConfigurationError, NonFiniteUpdateError

WORD_BITS = 64
FEWEST_LEVELS = 1


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """How a number travels in a sum modulo 2^64: several numbers a word, each in its own bits.

    A number of size at most 1 becomes an integer from 0 to ``2 * levels``, where `levels` stands for 0. The sum of
    `terms` such integers fits into the bits of one number, so that no number carries into its neighbour and the word
    does not wrap: by construction, not by chance.

    Args:
        bits: the bits of a number, from 2 to 64.
        terms: how many numbers are added at most, which is the number of clients of a round.

    Raises:
        ConfigurationError: so many terms leave no level in so few bits.

    >>> import numpy as np
    >>> numbers = FixedPoint(bits=7, terms=8)
    >>> numbers.levels, numbers.numbers_per_word  # 4 bits a client, so that the sum of eight fits
    (7, 9)
    >>> a, b = (numbers.encoded(np.array(values)) for values in ([1.0, -0.5, 0.0], [1.0, 0.25, 0.25]))
    >>> numbers.decoded(a + b, terms=2, count=3).round(2).tolist()
    [2.0, -0.29, 0.29]
    """

    bits: int
    terms: int

    def __post_init__(self) -> None:
        """Check that at least one level is left.

        Raises:
            ConfigurationError: none is.
        """
        if not 2 <= self.bits <= WORD_BITS:
            raise ConfigurationError(f"expected 2 to {WORD_BITS} bits a number in a masked sum, got {self.bits}")
        if self.terms < 1 or self.levels < FEWEST_LEVELS:
            raise ConfigurationError(
                f"expected more bits a number: the sum of {self.terms} clients does not fit into {self.bits}, even "
                "where each sends only a sign"
            )

    @property
    def levels(self) -> int:
        """The integers on either side of 0 that one client may send."""
        # Beyond 2^52, a double has no more of them.
        return min(((1 << self.bits) - 1) // (2 * self.terms), 1 << 52)

    @property
    def numbers_per_word(self) -> int:
        """How many numbers share a word."""
        return WORD_BITS // self.bits

    def words(self, count: int) -> int:
        """How many words so many numbers take."""
        return -(-count // self.numbers_per_word)

    def rounded(self, values: Float64[np.ndarray, " count"]) -> Float64[np.ndarray, " count"]:
        """What arrives of numbers: each at most 1 in size, and on a level.

        Raises:
            NonFiniteUpdateError: a number is not finite.
        """
        return self._levels_of(values) / self.levels

    def encoded(self, values: Float64[np.ndarray, " count"]) -> UInt64[np.ndarray, " words"]:
        """Numbers as words. A number larger than 1 counts as 1: whoever has such numbers divides them before.

        Raises:
            NonFiniteUpdateError: a number is not finite.
        """
        shifted = (self._levels_of(values) + self.levels).astype(np.uint64)
        per_word = self.numbers_per_word
        padded = np.zeros(self.words(len(values)) * per_word, dtype=np.uint64)
        padded[: len(values)] = shifted
        words = np.zeros(self.words(len(values)), dtype=np.uint64)
        for place in range(per_word):
            words |= padded[place::per_word] << np.uint64(place * self.bits)
        return words

    def decoded(self, words: UInt64[np.ndarray, " words"], terms: int, count: int) -> Float64[np.ndarray, " count"]:
        """The sums of numbers, from the sum of their words; the arguments are those of `levels_in`."""
        return self.levels_in(words, terms, count) / self.levels

    def levels_in(self, words: UInt64[np.ndarray, " words"], terms: int, count: int) -> Int64[np.ndarray, " count"]:
        """The sums of the levels that numbers were rounded to, exactly.

        Args:
            words: the sum of the words of some clients.
            terms: how many clients these are.
            count: how many numbers the words have.
        """
        per_word = self.numbers_per_word
        mask = np.uint64((1 << self.bits) - 1)
        shifted = np.empty((len(words), per_word), dtype=np.uint64)
        for place in range(per_word):
            shifted[:, place] = (words >> np.uint64(place * self.bits)) & mask
        # The difference is small, while the terms may need more bits than a double has.
        offset = np.uint64(terms * self.levels)
        return (shifted.reshape(-1)[:count] - offset).view(np.int64)

    def _levels_of(self, values: Float64[np.ndarray, " count"]) -> Float64[np.ndarray, " count"]:
        if not np.isfinite(values).all():
            raise NonFiniteUpdateError("expected finite numbers to send under masks, got NaN or infinity")
        return np.clip(np.rint(values * self.levels), -self.levels, self.levels)
