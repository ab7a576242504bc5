"""What is written down of a private round beside what every round has."""

from dataclasses import dataclass
from typing import Literal

from florist.errors import printable

LONGEST_REASON = 400


@dataclass(frozen=True, slots=True)
class PrivacyRecord:
    """How the updates of one round were protected.

    Attributes:
        masked: whether the server had the sum alone, under masks.
        threshold: how many clients had to be left for the sum to be read; None without masks.
        epsilon: what the rounds up to this one have spent, with `delta`; None without noise. A round of which nothing
            could be read counts as well.
        delta: the probability that epsilon does not hold; None without noise.
        noise_multiplier: the noise over the clip that epsilon was computed for; None without noise.
        clip: the norm that each client's change was clipped to, in units of the product; None where none was.
        next_clip: that of the next round, which differs where the clip follows the norms.
        deviation: the standard deviation of the noise in each number of the mean of the clients, along orthonormal rows
            of A; None without noise. Where clients added it, that of all shares in the sum, which is more than is
            accounted where more clients are left than had to be; None where nothing could be read.
        failed: why nothing could be read of the sum; None where it was.
        noise: who added the noise, the server or the clients; None without noise, and in records of a version in which
            it was always the server.
        honest_fraction: the fraction of a round's clients that was declared to be honest, where clients added it.
        spent: whether the rounds end after this one, since another would exceed the epsilon that was declared.
    """

    masked: bool
    threshold: int | None = None
    epsilon: float | None = None
    delta: float | None = None
    noise_multiplier: float | None = None
    clip: float | None = None
    next_clip: float | None = None
    deviation: float | None = None
    failed: str | None = None
    spent: bool = False
    noise: Literal["server", "clients"] | None = None
    honest_fraction: float | None = None

    def __post_init__(self) -> None:
        if self.failed is not None:
            object.__setattr__(self, "failed", printable(self.failed, LONGEST_REASON))
