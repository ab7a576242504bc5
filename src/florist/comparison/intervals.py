"""Means of a few repeated measurements, with the intervals that so few of them allow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

# 97.5% quantiles of Student's t for 1 to 30 degrees of freedom.
_STUDENT_975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
_NORMAL_975 = 1.959964

FEWEST_VALUES = 3
"""The fewest values whose interval is worth printing. That of two values reaches 6.4 times as far to either side of
their mean as they lie apart: it holds, and says nothing."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and how well it is known.

    Attributes:
        mean: the mean of the values.
        half_width: half the width of the 95% interval around it; None for one value, which says nothing of its spread.
        count: the number of values.
        lowest: the lowest of them.
        highest: the highest of them.
    """

    mean: float
    half_width: float | None
    count: int
    lowest: float
    highest: float

    @property
    def low(self) -> float | None:
        """The lower end of the interval."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """The upper end of the interval."""
        return None if self.half_width is None else self.mean + self.half_width

    @property
    def sign(self) -> int | None:
        """1 if the whole interval is above 0, -1 if it is below, 0 if it holds 0; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return int(self.low > 0) - int(self.high < 0)


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean and its 95% interval by Student's t.

    The interval holds for values that vary like independent draws from one normal distribution.

    Args:
        values: finite numbers.

    Returns:
        None if there are no values.
    """
    if not values:
        return None
    mean, count = fmean(values), len(values)
    if count == 1:
        return Estimate(mean, None, 1, mean, mean)
    # hypot does not overflow where squares would: a perplexity may be 1e300.
    deviation = math.hypot(*(value - mean for value in values)) / math.sqrt(count - 1)
    half_width = student_975(count - 1) * deviation / math.sqrt(count)
    return Estimate(mean, half_width, count, min(values), max(values))


def student_975(degrees: int) -> float:
    """The 97.5% quantile of Student's t: from a table up to 30 degrees of freedom, then from the normal quantile.

    Above 30, the first two terms of the Cornish-Fisher expansion in 1 / degrees correct the normal quantile: without
    them it would fall by 4% from 30 to 31.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    if degrees <= len(_STUDENT_975):
        return _STUDENT_975[degrees - 1]
    z = _NORMAL_975
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
