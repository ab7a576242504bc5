"""Noise that the clients of a sum add, a share each: the sum has it before the server has the sum.

Why the noise of the sum is what the accountant counts, although each client rounds its numbers and cuts them:

- Exact shares of the honest clients add up to one Gaussian of at least the accounted variance; those of the others, who
  may tell theirs, are not counted.
- Rounding comes before the sum, so that it is no post-processing of it. But the sum of numbers that clients round after
  they added their noise has the distribution of the exact noisy sum plus independent uniform numbers, rounded once,
  which *is* post-processing. The difference is the aliasing of a Gaussian that is sampled at integers: for a share of s
  steps at most about ``exp(-pi^2 s^2)``, below 1e-68 from `FEWEST_STEPS` on. No margin of the clip is needed for it.
- A number is cut where its noise is more than `TAIL` standard deviations, which has a probability of 4e-33 a number. It
  is not needed for the sum not to wrap: `FixedPoint` sees to that.

Both are far below any delta. Source: P. Kairouz, Z. Liu and T. Steinke, The distributed discrete Gaussian mechanism,
arXiv:2102.06387, for shares of noise under masks, with Gaussians that are discrete from the beginning.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from florist.errors import ConfigurationError
from florist.privacy.clipping import BELOW, Change, noisy
from florist.privacy.fixed_point import FixedPoint

TAIL = 12.0
"""How many standard deviations of its noise a number has room for in a sum."""
FEWEST_STEPS = 4.0
"""How many steps of the fixed point the standard deviation of a share has at least."""

Source = Callable[[str], torch.Generator | None]
"""Gives the generator of what is drawn for a purpose; None for the system's source of randomness."""


def in_secret(_: str) -> None:
    """The system's source of randomness, for every purpose."""


def honest_in_the_sum(asked: int, threshold: int, honest_fraction: float) -> int:
    """How many honest clients are in a sum at least, whoever is lost: the clients that are not honest may all stay.

    Args:
        asked: how many clients a round asks.
        threshold: how many of them are in the sum at least.
        honest_fraction: the fraction of the asked clients that follow the protocol, and tell nobody their noise.

    Raises:
        ConfigurationError: there may be none.

    >>> honest_in_the_sum(asked=10, threshold=8, honest_fraction=0.7)  # three of the eight may be the others
    5
    """
    # 0.1 * 30 is 3.0000000000000004: the ceiling must not count a fourth client for that.
    others = asked - math.ceil(round(honest_fraction * asked, 9))
    if threshold <= others:
        raise ConfigurationError(
            f"privacy.honest_fraction = {honest_fraction}: expected more than {others} clients in the sum, since so "
            f"many of {asked} may not be honest, got a threshold of {threshold}, so that nobody's noise might count; "
            "raise privacy.threshold, or privacy.honest_fraction where more are honest"
        )
    return threshold - others


@dataclass(frozen=True, slots=True)
class NoiseShare:
    """What one client adds to each number that it sends, whether it trains it or not.

    Args:
        deviation: the standard deviation of its noise in each number of the change.
        count_deviation: that in the bit that says whether its norm is below the clip; None where it tells none.
        out_features: the rows of B of all modules of the federation.
        rank: the columns of B, which is the largest rank of all clients.
    """

    deviation: float
    count_deviation: float | None
    out_features: Mapping[str, int]
    rank: int

    @classmethod
    def of(
        cls, deviation: float, count_deviation: float | None, honest: int, out_features: Mapping[str, int], rank: int
    ) -> "NoiseShare":
        """The share with which so many honest clients together add noise of a standard deviation to a sum.

        Args:
            deviation: that of the sum, in each number of the change.
            count_deviation: that of the sum of the bits; None where there are none.
            honest: how many honest clients are in the sum at least.
            out_features: the rows of B of all modules.
            rank: the columns of B.
        """
        root = honest**0.5
        return cls(
            deviation / root, count_deviation / root if count_deviation is not None else None, out_features, rank
        )

    def size(self, clip: float) -> float:
        """The largest size of a number of a change that was clipped, with its noise."""
        return clip + TAIL * self.deviation

    @property
    def bit_size(self) -> float:
        """The largest size of the bit with its noise."""
        return 0.5 + TAIL * (self.count_deviation or 0.0)

    def require_fine(self, numbers: FixedPoint, clip: float) -> None:
        """Check that rounding is fine enough to hide nothing of the noise.

        Raises:
            ConfigurationError: the noise is less than `FEWEST_STEPS` steps.
        """
        steps = [self.deviation * numbers.levels / self.size(clip)]
        if self.count_deviation is not None:
            steps.append(self.count_deviation * numbers.levels / self.bit_size)
        if min(steps) < FEWEST_STEPS:
            raise ConfigurationError(
                f"privacy.bits = {numbers.bits}: expected more, since the noise of a client is {min(steps):.2g} steps "
                f"of so few and has to be {FEWEST_STEPS:g} or more to be that of a Gaussian in the sum"
            )

    def added(self, change: Change, source: Source) -> Change:
        """A client's change with its noise in each number that any client might have changed.

        Args:
            change: what it changed, clipped; modules and columns that it does not train are zero.
            source: where the noise comes from.
        """

        def whole(name: str, rows: int) -> torch.Tensor:
            B = torch.zeros(rows, self.rank, dtype=torch.float64)
            if name in change.B:
                B[:, : change.B[name].shape[1]] = change.B[name].double()
            return B

        saved = {name: tensor for name, tensor in change.saved_parameters.items() if name != BELOW}
        every = Change({name: whole(name, rows) for name, rows in self.out_features.items()}, saved)
        noised = noisy(every, self.deviation, source("noise"))
        bit = change.saved_parameters.get(BELOW)
        if bit is None or self.count_deviation is None:
            return noised
        told = noisy(Change({}, {BELOW: bit}), self.count_deviation, source("noise of the count"))
        return Change(noised.B, {**noised.saved_parameters, **told.saved_parameters})
