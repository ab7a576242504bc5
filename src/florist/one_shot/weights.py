"""How much each adapter counts, and in which unit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from pathlib import Path

from florist.errors import InvalidUpdateError, some


class CountedIn(Enum):
    """The unit of weights. Counts of unlike units cannot be compared."""

    EXAMPLES = "examples"
    """Training examples."""
    ADAPTERS = "adapters"
    """Adapters that nobody weighed: each counts once, and an aggregate as often as there are adapters in it."""
    SHARES = "shares"
    """Fractions of a whole that nobody named. They say how adapters compare with each other, and nothing else does."""


@dataclass(frozen=True, slots=True)
class Weight:
    """What an aggregate counts for where it is aggregated again: the sum of what went into it.

    Attributes:
        count: at least 1. Of shares it says nothing, and is 1.
        counted_in: its unit.
    """

    def __str__(self) -> str:
        if self.counted_in is CountedIn.SHARES:
            return "weighted by shares of an unknown number of examples"
        noun = self.counted_in.value if self.count > 1 else self.counted_in.value.removesuffix("s")
        return f"{self.count} {noun}" + (" that nobody weighed" if self.counted_in is CountedIn.ADAPTERS else "")

    count: int
    counted_in: CountedIn


ONE_ADAPTER = Weight(1, CountedIn.ADAPTERS)
"""What an adapter counts for when nothing is known of it."""


@dataclass(frozen=True, slots=True)
class Weights:
    """One count for each adapter.

    Attributes:
        counts: whole numbers, in the order of the adapters. Shares are scaled to whole numbers.
        counted_in: their unit.
    """

    counts: tuple[int, ...]
    counted_in: CountedIn

    @property
    def total(self) -> Weight:
        """What the aggregate counts for."""
        return Weight(1 if self.counted_in is CountedIn.SHARES else sum(self.counts), self.counted_in)

    @property
    def shares(self) -> tuple[float, ...]:
        """Each count, over the sum of all."""
        return tuple(count / sum(self.counts) for count in self.counts)


def given(numbers: Sequence[int | Fraction]) -> Weights:
    """The weights that a user gives. Whole numbers are examples; if one is a fraction, all are shares.

    0.5, 0.25, 0.25 becomes 2, 1, 1, without rounding, and nobody knows of how many examples.
    """
    scale = math.lcm(*(number.denominator for number in numbers))
    counts = tuple(int(number * scale) for number in numbers)
    return Weights(counts, CountedIn.EXAMPLES if scale == 1 else CountedIn.SHARES)


def combined(paths: Sequence[Path], known: Sequence[Weight]) -> Weights:
    """The weights of adapters for which the user gave none, from what is known of each.

    An aggregate of aggregates is then that of all the adapters in them, since aggregates of n_1 and n_2 examples count
    as n_1 and n_2.

    Args:
        paths: the paths of the adapters, for messages.
        known: what the certificate of each says, or `ONE_ADAPTER`.

    Raises:
        InvalidUpdateError: they are counted in unlike units, or in shares; a single adapter needs no comparison.
    """
    kinds = {weight.counted_in: f"{path}: {weight}" for path, weight in zip(paths, known, strict=True)}
    if len(known) > 1 and (len(kinds) > 1 or CountedIn.SHARES in kinds):
        raise InvalidUpdateError(
            f"expected weights in one unit, got weights that cannot be compared ({some(list(kinds.values()))}); "
            "give the examples behind every adapter (--weights)"
        )
    return Weights(tuple(weight.count for weight in known), known[0].counted_in)
