"""What protects the updates of a federation: masks, and noise."""

import math
from dataclasses import dataclass

from florist.errors import ConfigurationError
from florist.federation.rules import Federation
from florist.privacy.accounting import Accountant
from florist.privacy.clipping import AdaptiveClip


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
    """

    accountant: Accountant
    epsilon: float | None = None
    adaptive: AdaptiveClip | None = None

    @property
    def multiplier(self) -> float:
        """The noise of the sum over the clip. It is larger than what is accounted where the clip costs as well."""
        accounted = self.accountant.noise_multiplier
        return accounted if self.adaptive is None else self.adaptive.noise_for_both(accounted)

    def rounds_within(self, most: int) -> int:
        """How many rounds, at most `most`, may be played."""
        return most if self.epsilon is None else self.accountant.rounds_within(self.epsilon, most)
