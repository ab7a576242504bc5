"""What protects the updates of a federation: masks, and noise."""

import math
from dataclasses import dataclass

import torch

from florist.errors import ConfigurationError
from florist.federation.rules import Federation
from florist.privacy.accounting import Accountant
from florist.privacy.clipping import BELOW, AdaptiveClip, Change, noisy
from florist.privacy.noise_share import NoiseShare, honest_in_the_sum
from florist.privacy.randomness import normal_numbers
from florist.seeding import generator


@dataclass(frozen=True, slots=True)
class Masks:
    """How updates are summed under masks.

    Args:
        bits: the bits of a number in the sum.
        threshold: how many clients have to be left at the end, or which fraction of those that a round asks, as a
            float; by default one more than half of them.
        smallest_group: over how many clients each number is summed at least.
        max_examples: the largest weight of a client; one that has more examples counts as one with so many.
        largest: the largest size of a number of a change where there is no clip. A client with a larger one stays out.
    """

    bits: int = 32
    threshold: int | float | None = None
    smallest_group: int = 2
    max_examples: int = 10_000
    largest: float = 4.0

    def threshold_of(self, federation: Federation) -> int:
        """The threshold of a round of a federation: at least that many clients are in each sum."""
        asked = federation.clients_per_round
        safe, given = asked // 2 + 1, self.threshold
        chosen = safe if given is None else math.ceil(given * asked) if isinstance(given, float) else given
        if chosen < safe or chosen > asked:
            raise ConfigurationError(
                f"privacy.threshold = {given}: expected {safe} to {asked} of the {asked} clients that a round asks, "
                "above half of them, since the server could otherwise end a round twice with two halves"
            )
        return max(2, chosen, federation.required_replies)


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of a federation, and what it may spend.

    Args:
        accountant: says what the rounds spend, for its noise multiplier.
        epsilon: what they may spend; None for all that the rounds do.
        adaptive: how the clip follows the norms; None for a clip that stays.
        honest_fraction: the fraction of the clients of a round that are honest, where clients add the noise, a share
            each; None where the server adds it.
    """

    accountant: Accountant
    epsilon: float | None = None
    adaptive: AdaptiveClip | None = None
    honest_fraction: float | None = None

    def __post_init__(self) -> None:
        if self.honest_fraction is not None and not 0 < self.honest_fraction <= 1:
            raise ConfigurationError(
                f"expected an honest fraction above 0 and at most 1, got {self.honest_fraction}: shares of noise count "
                "where they are of clients that tell them to nobody"
            )

    @property
    def by_clients(self) -> bool:
        """Whether clients add the noise, before the server has the sum."""
        return self.honest_fraction is not None

    @property
    def multiplier(self) -> float:
        """The noise of the sum over the clip. It is larger than what is accounted where the clip costs as well."""
        accounted = self.accountant.noise_multiplier
        return accounted if self.adaptive is None else self.adaptive.noise_for_both(accounted)

    def rounds_within(self, most: int) -> int:
        """How many rounds, at most `most`, may be played."""
        return most if self.epsilon is None else self.accountant.rounds_within(self.epsilon, most)

    def share(self, federation: Federation, clip: float, threshold: int) -> NoiseShare | None:
        """What each client of a round adds; None where the server adds the noise.

        Args:
            federation: the rules.
            clip: that of the round.
            threshold: how many clients are in the sum at least.

        Raises:
            ConfigurationError: so few of them may be honest that no noise might count.
        """
        if self.honest_fraction is None:
            return None
        honest = honest_in_the_sum(federation.clients_per_round, threshold, self.honest_fraction)
        count = self.adaptive.count_noise if self.adaptive is not None else None
        rows = {name: out_features for name, (out_features, _) in federation.shapes.items()}
        return NoiseShare.of(self.multiplier * clip, count, honest, rows, federation.max_rank)

    def added(
        self, federation: Federation, round_number: int, total: Change, clip: float, *, secret: bool
    ) -> tuple[Change, float]:
        """A sum with noise in each of its numbers, and the clip of the next round.

        Where clients have added the noise the sum has it already, and gets no more.

        Args:
            federation: the rules.
            round_number: the round, from which and the seed the noise is drawn where it is not secret.
            total: the sum of what clients changed, in every number that a client might have changed; with the number
                of those below the clip, less one half of all, where the clip follows the norms.
            clip: that of the round.
            secret: whether the noise comes from the system's source of randomness.
        """

        def source(of: str) -> torch.Generator | None:
            return None if secret else generator(federation.seed, of, round_number)

        told = total.saved_parameters.get(BELOW)
        saved = {name: tensor for name, tensor in total.saved_parameters.items() if name != BELOW}
        noised = Change(total.B, saved)
        if not self.by_clients:
            noised = noisy(noised, self.multiplier * clip, source("noise"))
        if self.adaptive is None or told is None:
            return noised, clip
        asked = federation.clients_per_round
        drawn = 0.0 if self.by_clients else float(normal_numbers((1,), source("noise of the count")))
        below = asked / 2 + float(told) + self.adaptive.count_noise * drawn
        return noised, self.adaptive.next_clip(clip, below, asked)
