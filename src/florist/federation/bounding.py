"""What a client does to what its training changed before that goes into a private sum, in whichever engine it is."""

from dataclasses import dataclass

import torch

from florist.errors import ConfigurationError, InvalidUpdateError
from florist.federation.contributions import Contribution
from florist.federation.protections import Masks
from florist.privacy.clipping import BELOW, Change
from florist.privacy.fixed_point import FixedPoint
from florist.privacy.noise_share import NoiseShare, Source, in_secret


@dataclass(frozen=True, slots=True)
class Bounding:
    """How a client bounds what it sends.

    Args:
        clip: the norm that a change is clipped to; None for none.
        follows: whether the client tells by one bit whether its norm is at most the clip.
        weighted: whether the number of its examples is its weight; all clients count the same otherwise.
        masks: how updates are summed under masks; None where the server has single ones.
        asked: how many clients a round asks.
        numbers: how many numbers a client of the largest rank sends at most.
        share: the noise that the client adds; None where it adds none.
    """

    clip: float | None
    follows: bool
    weighted: bool
    masks: Masks | None
    asked: int
    numbers: int
    share: NoiseShare | None = None

    @property
    def clipped_to(self) -> float | None:
        """The norm that a client clips to, so that what arrives has at most the norm of the clip after rounding.

        Where the client adds noise before it rounds, rounding does not make its part longer (`noise_share`).

        Raises:
            ConfigurationError: the bits are so few that rounding takes half of it, or shows in the client's noise.
        """
        if self.masks is None or self.clip is None:
            return self.clip
        if self.share is not None:
            self.share.require_fine(FixedPoint(self.masks.bits, self.asked), self.clip)
            return (1 - 1e-9) * self.clip
        rounding = 0.5 * self.clip / FixedPoint(self.masks.bits, self.asked).levels * self.numbers**0.5
        if rounding > self.clip / 2:
            raise ConfigurationError(
                f"privacy.bits = {self.masks.bits}: expected more, since rounding {self.numbers} numbers to so few may "
                "take half of the clip or more"
            )
        return (1 - 1e-9) * (self.clip - rounding)

    def contribution(self, change: Change, num_examples: int, source: Source = in_secret) -> Contribution:
        """What a client sends, which nobody but itself looks at before.

        Args:
            change: what its training changed.
            num_examples: the number of its examples.
            source: where its noise comes from, if it adds any.

        Raises:
            InvalidUpdateError: it cannot be bounded; with a clip every change can.
            ConfigurationError: as `clipped_to`.
        """
        change = Change(
            {name: B.cpu() for name, B in change.B.items()},
            {name: tensor.cpu() for name, tensor in change.saved_parameters.items()},
        )
        norm = self.clipped_to
        if self.clip is None or norm is None:
            bounded = self._small(change)
        else:
            bounded = change.clipped(norm)
            if self.follows:
                bit = torch.tensor([0.5 if change.norm <= self.clip else -0.5])
                bounded = Change(bounded.B, {**bounded.saved_parameters, BELOW: bit})
            if self.share is not None:
                bounded = self.share.added(bounded, source)
        most = self.masks.max_examples if self.masks is not None else num_examples
        return Contribution(bounded, min(num_examples, most) if self.weighted else 1)

    def _small(self, change: Change) -> Change:
        """The change itself, where each of its numbers fits into a sum."""
        tensors = [*change.B.values(), *change.saved_parameters.values()]
        sizes = [float(tensor.abs().max()) for tensor in tensors if tensor.numel()]
        if self.masks is not None and not all(size <= self.masks.largest for size in sizes):
            raise InvalidUpdateError(
                f"its change has a number above privacy.largest = {self.masks.largest:g}, or one that is "
                "not finite: train with a smaller learning rate, raise that key at all sites, or set privacy.clip"
            )
        return change
