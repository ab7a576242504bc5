"""The norm that bounds what one client can do to a sum, and the noise that hides what it does."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from florist.errors import ConfigurationError
from florist.privacy.randomness import normal_numbers
from florist.rounds import NOTHING, SavedParameters

BELOW = "whether the norm is at most the clip"
"""The name under which a client's bit travels, as one half or minus one half, where the clip follows the norms."""


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What one client's training changed, or the sum of what several changed, where B alone is trained.

    Attributes:
        B: the change of B, by module, in units in which its norm is that of the product: B times the norm of a row
            of A, whose rows are orthogonal.
        saved_parameters: the change of the parameters that travel whole.
    """

    B: Mapping[str, Tensor]
    saved_parameters: SavedParameters = field(default_factory=lambda: NOTHING)

    @property
    def norm(self) -> float:
        """The Frobenius norm of all of it together, in float64."""
        squares = [float(tensor.double().square().sum()) for tensor in self._tensors()]
        return sum(squares) ** 0.5

    def times(self, factor: float) -> "Change":
        """All of it, scaled."""
        return Change(
            {name: factor * tensor for name, tensor in self.B.items()},
            {name: factor * tensor for name, tensor in self.saved_parameters.items()},
        )

    def clipped(self, clip: float) -> "Change":
        """It, scaled down to a norm where that is larger.

        The result is checked in float64, so that rounding does not leave it a little above. What is not finite, or has
        a norm that is not, becomes zero: there is nothing in it that could be bounded.
        """
        norm = self.norm
        if norm <= clip:
            return self
        if not norm < float("inf"):
            return self._zero()
        scaled = self.times(clip / norm)
        return scaled if scaled.norm <= clip else scaled.times(1 - 1e-6)

    def _zero(self) -> "Change":
        return Change(
            {name: torch.zeros_like(tensor) for name, tensor in self.B.items()},
            {name: torch.zeros_like(tensor) for name, tensor in self.saved_parameters.items()},
        )

    def _tensors(self) -> list[Tensor]:
        return [*self.B.values(), *self.saved_parameters.values()]


def noisy(total: Change, deviation: float, generator: torch.Generator | None) -> Change:
    """A sum with independent Gaussian noise on each of its numbers.

    Args:
        total: the sum of clipped changes. Every module and each of its columns has to be there, whoever sent it: noise
            on what is missing would be missing as well.
        deviation: the standard deviation of the noise.
        generator: where the noise comes from; None for the system's source of randomness.
    """

    def with_noise(tensor: Tensor) -> Tensor:
        return tensor.double() + deviation * normal_numbers(tensor.shape, generator)

    return Change(
        {name: with_noise(tensor) for name, tensor in sorted(total.B.items())},
        {name: with_noise(tensor) for name, tensor in sorted(total.saved_parameters.items())},
    )


@dataclass(frozen=True, slots=True)
class AdaptiveClip:
    """A clip that follows a quantile of the norms, which clients tell by one noisy bit each.

    ``clip <- clip * exp(-rate * (fraction of clients below the clip + noise - quantile))``.

    Source: G. Andrew et al., Differentially private learning with adaptive clipping, arXiv:1905.03871, algorithm 1.

    Args:
        quantile: the fraction of the clients whose norms are to be below the clip.
        rate: how fast it follows.
        count_noise: the standard deviation of the noise in the number of clients below the clip. It costs privacy,
            which `noise_for_both` takes out of the noise of the sum.

    Raises:
        ConfigurationError: a number is out of range.

    >>> rule = AdaptiveClip()
    >>> rule.next_clip(1.0, below=30.0, clients=50) < 1 < rule.next_clip(1.0, below=20.0, clients=50)
    True
    """

    quantile: float = 0.5
    rate: float = 0.2
    count_noise: float = 1.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 < self.quantile < 1 or not self.rate > 0 or not self.count_noise > 0:
            raise ConfigurationError(
                "expected a quantile between 0 and 1, and a rate and a noise above 0, got "
                f"{self.quantile}, {self.rate} and {self.count_noise}"
            )

    def next_clip(self, clip: float, below: float, clients: float) -> float:
        """The clip of the next round.

        Args:
            clip: that of this round.
            below: how many clients had a norm of at most the clip, with noise.
            clients: how many clients a round asks.
        """
        fraction = min(1.0, max(0.0, below / clients))
        return clip * math.exp(-self.rate * (fraction - self.quantile))

    def noise_for_both(self, noise_multiplier: float) -> float:
        """The noise multiplier of the sum with which both the sum and the count cost what `noise_multiplier` does.

        Raises:
            ConfigurationError: the count alone costs more.
        """
        # A bit that is +-1/2 moves the count by half: z_b = 2 count_noise. 1/z^2 = 1/z_sum^2 + 1/(2 count_noise)^2.
        left = noise_multiplier**-2 - (2 * self.count_noise) ** -2
        if left <= 0:
            raise ConfigurationError(
                f"expected a count noise above {noise_multiplier / 2:.3g}, half of the noise multiplier, got "
                f"{self.count_noise}: the count alone would cost more than the round may"
            )
        return left**-0.5
