"""How much each adapter counts, and what its count is a count of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from pathlib import Path

from florist.errors import InvalidUpdateError


class CountedIn(Enum):
    """What weights are counted in. Counts of unlike things cannot be compared."""

    EXAMPLES = "examples"
    """Training examples."""
    ADAPTERS = "adapters"
    """Nobody weighed them: each adapter counts once, and an aggregate as often as adapters are in it."""
    SHARES = "shares"
    """In proportion to each other, and to nothing else."""


@dataclass(frozen=True, slots=True)
class Weight:
    """What an aggregate counts for where it is aggregated again: the sum of what went into it.

    Attributes:
        count: at least 1.
        counted_in: what it counts.
    """

    count: int
    counted_in: CountedIn


ONE_ADAPTER = Weight(1, CountedIn.ADAPTERS)
"""What an adapter counts for of which nothing is known."""


@dataclass(frozen=True, slots=True)
class Weights:
    """One count for each adapter.

    Attributes:
        counts: whole numbers, in the order of the adapters.
        counted_in: what they count.
    """

    counts: tuple[int, ...]
    counted_in: CountedIn

    @property
    def total(self) -> Weight:
        """What the aggregate counts for."""
        return Weight(sum(self.counts), self.counted_in)

    @property
    def shares(self) -> tuple[float, ...]:
        """Each count over their sum."""
        return tuple(count / sum(self.counts) for count in self.counts)


def given(numbers: Sequence[int | Fraction]) -> Weights:
    """Weights as a user gives them: whole numbers are examples; where one is a fraction, all are shares.

    0.5, 0.25, 0.25 becomes 2, 1, 1, without rounding. How many examples these are is not known.
    """
    scale = math.lcm(*(number.denominator for number in numbers))
    counts = tuple(int(number * scale) for number in numbers)
    return Weights(counts, CountedIn.EXAMPLES if scale == 1 else CountedIn.SHARES)


def combined(paths: Sequence[Path], known: Sequence[Weight]) -> Weights:
    """The weights of adapters that nobody weighed, from what is known of each.

    An aggregate of aggregates is then that of all the adapters in them: two of n_1 and n_2 examples count as n_1
    and n_2.

    Args:
        paths: of the adapters, for messages.
        known: of each: what its certificate says, else `ONE_ADAPTER`.

    Raises:
        InvalidUpdateError: they are counted in unlike things, or in shares; a single adapter needs no comparison.
    """
    kinds = {
        weight.counted_in: f"{path}: {weight.count} {weight.counted_in.value}"
        for path, weight in zip(paths, known, strict=True)
    }
    if len(known) > 1 and (len(kinds) > 1 or CountedIn.SHARES in kinds):
        raise InvalidUpdateError(
            "expected weights that can be compared, and these are counted in unlike units, or are shares of an "
            f"unknown number ({'; '.join(kinds.values())}); give the examples behind every adapter (--weights)"
        )
    return Weights(tuple(weight.count for weight in known), known[0].counted_in)
