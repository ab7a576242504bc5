"""What a masked round asks of a client, and what a client demands of the rounds that it takes part in."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, PositiveInt

from florist.errors import InvalidUpdateError
from florist.federation.bounding import Bounding
from florist.federation.private_sums import layout_of
from florist.federation.protections import Masks
from florist.flower.client_texts import Name
from florist.privacy.clipping import BELOW
from florist.privacy.fixed_point import FixedPoint
from florist.privacy.layout import Layout
from florist.privacy.noise_share import NoiseShare, honest_in_the_sum
from florist.rounds import SavedParameters

_ROOM = 64
"""How many times more numbers a client may be asked to send than it trains: others may train more modules."""

_Clients = Annotated[int, Field(ge=2, le=10**6)]
_Size = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Fraction = Annotated[float, Field(gt=0, le=1)]
_Names = Annotated[list[Name], Field(max_length=100_000)]


@dataclass(frozen=True, slots=True)
class PrivacyTerms:
    """How a client is to hide its update, in names and numbers that an assignment can carry.

    Attributes:
        threshold: how many clients have to be left at the end.
        smallest_group: over how many clients each number is summed at least.
        asked: how many clients a round asks at most, whose sum has to fit.
        bits: the bits of a number.
        largest: the largest number of a change where there is no clip.
        max_examples: the largest weight.
        weighted: whether the number of examples is the weight; all clients count the same otherwise.
        follows: whether the client tells by one bit whether its norm is at most the clip.
        rank: the rank that this client sends, padded.
        ranks: the ranks that clients of the round send.
        modules: all modules of the federation, of which the client may train fewer.
        out_features: the rows of B of each of them.
        saved_parameters: the parameters that travel whole.
        clip: the norm that a change is clipped to; None for none.
        noise_multiplier: where clients add the noise, the noise of the sum over the clip; None where they add none.
        count_noise: the noise of the sum of the bits; None where clients add none to it.
        honest_fraction: the fraction of the asked clients that are honest, which gives the share of each.
    """

    threshold: _Clients
    smallest_group: _Clients
    asked: _Clients
    bits: Annotated[int, Field(ge=2, le=64)]
    largest: _Size
    max_examples: PositiveInt
    weighted: bool
    follows: bool
    rank: PositiveInt
    ranks: Annotated[list[PositiveInt], Field(max_length=10_000)]
    modules: _Names
    out_features: Annotated[list[PositiveInt], Field(max_length=100_000)]
    saved_parameters: _Names
    clip: _Size | None = None
    noise_multiplier: _Size | None = None
    count_noise: _Size | None = None
    honest_fraction: _Fraction | None = None

    def require_possible(
        self, rank: int, max_rank: int, shapes: Mapping[str, tuple[int, int]], saved_parameters: SavedParameters
    ) -> None:
        """Check that the terms fit a client, before it trains or allocates anything by them.

        Args:
            rank: the rank that it trains.
            max_rank: the largest rank of any client.
            shapes: (out_features, in_features) of the modules that it trains.
            saved_parameters: those of its model.

        Raises:
            InvalidUpdateError: they do not.
        """
        if len(self.modules) != len(self.out_features) or len(set(self.modules)) < len(self.modules):
            raise InvalidUpdateError("expected the rows of every module, each once, in the terms of a masked round")
        rows = dict(zip(self.modules, self.out_features, strict=True))
        for name, shape in shapes.items():
            if rows.get(name) != shape[0]:
                raise InvalidUpdateError(f"{name}: expected {shape[0]} rows in a masked round, got {rows.get(name)}")
        if sorted(self.saved_parameters) != sorted(saved_parameters):
            raise InvalidUpdateError(
                f"expected the parameters {sorted(saved_parameters)} in a masked round, got {self.saved_parameters}"
            )
        if not rank <= self.rank <= max_rank or self.rank not in self.ranks:
            raise InvalidUpdateError(
                f"expected to send a rank from {rank} to {max_rank} that is one of the round's, got {self.rank}"
            )
        noise = (self.noise_multiplier, self.honest_fraction)
        if noise != (None, None) and (None in noise or self.clip is None or self.weighted or self.rank != max_rank):
            raise InvalidUpdateError(
                f"expected noise with a clip, an honest fraction, equal weights and the largest rank, {max_rank}, got "
                f"noise of {self.noise_multiplier} times the clip {self.clip}, the fraction {self.honest_fraction} and "
                f"rank {self.rank}: noise has to be in each number"
            )
        if self.noise_multiplier is not None and self.follows != (self.count_noise is not None):
            raise InvalidUpdateError("expected noise for the bit that tells of the norm, and for none where none does")
        own = rank * sum(shape[0] for shape in shapes.values())
        if sum(self.out_features) * self.rank > _ROOM * own:
            raise InvalidUpdateError(
                f"expected at most {_ROOM} times the {own} numbers that this client trains, got modules of "
                f"{sum(self.out_features)} rows at rank {self.rank}"
            )

    def bounding(self, max_rank: int, saved_parameters: SavedParameters) -> Bounding:
        """How the client bounds what it sends; the same as `PrivateRounds.bounding`."""
        numbers = sum(self.out_features) * max_rank + sum(tensor.numel() for tensor in saved_parameters.values())
        return Bounding(self.clip, self.follows, self.weighted, self._masks, self.asked, numbers, self.share(max_rank))

    def share(self, max_rank: int) -> NoiseShare | None:
        """The noise that the client adds, the same as `Noise.share`; None where it adds none.

        Raises:
            ConfigurationError: so few clients of a sum may be honest that no noise might count.
        """
        if self.noise_multiplier is None or self.honest_fraction is None or self.clip is None:
            return None
        honest = honest_in_the_sum(self.asked, self.threshold, self.honest_fraction)
        rows = dict(zip(self.modules, self.out_features, strict=True))
        return NoiseShare.of(self.noise_multiplier * self.clip, self.count_noise, honest, rows, max_rank)

    def layout(self, saved_parameters: SavedParameters) -> Layout:
        """The order of the numbers; the same as that of `MaskedSums.round`."""
        shapes = {name: tuple(tensor.shape) for name, tensor in saved_parameters.items()}
        size, share = self.clip if self.clip is not None else self.largest, self.share(self.rank)
        return layout_of(
            FixedPoint(self.bits, self.asked),
            dict(zip(self.modules, self.out_features, strict=True)),
            {**shapes, BELOW: (1,)} if self.follows else shapes,
            self.ranks,
            size=size if share is None else share.size(size),
            bit_size=0.5 if share is None else share.bit_size,
            largest_weight=self.max_examples if self.weighted else 1,
        )

    @property
    def _masks(self) -> Masks:
        return Masks(self.bits, self.threshold, self.smallest_group, self.max_examples, self.largest)


@dataclass(frozen=True, slots=True)
class Demands:
    """The least protection that a client takes part with, whatever the server asks; by default none.

    Args:
        masked: whether it sends what it trained under masks alone, and tells nothing else that depends on its examples.
        threshold: the smallest threshold, as a number of clients or as a fraction of those that a round asks.
        smallest_group: the smallest group.
        clip: the largest clip; None for any, or for none.
        noise: the least noise of the sum over the clip that clients add; None where the server may add it, or nobody.
        honest_fraction: the largest fraction of honest clients that it counts on, where clients add the noise.
    """

    masked: bool = False
    threshold: int | float | None = None
    smallest_group: int = 2
    clip: float | None = None
    noise: float | None = None
    honest_fraction: float = 1.0

    def require(self, terms: PrivacyTerms) -> None:
        """Check the terms of a masked round.

        Raises:
            InvalidUpdateError: they protect less than is demanded.
        """
        least = self.threshold
        if isinstance(least, float):
            least = math.ceil(least * terms.asked)
        if least is not None and terms.threshold < least:
            raise InvalidUpdateError(
                f"expected a threshold of {least} or more, which this client's privacy.threshold demands, got "
                f"{terms.threshold}; it takes no part in the round"
            )
        if terms.smallest_group < self.smallest_group:
            raise InvalidUpdateError(
                f"expected groups of {self.smallest_group} or more, which this client's privacy.smallest_group "
                f"demands, got {terms.smallest_group}; it takes no part in the round"
            )
        if self.clip is not None and (terms.clip is None or terms.clip > self.clip):
            raise InvalidUpdateError(
                f"expected a clip of at most {self.clip:g}, which this client's privacy.clip demands, got "
                f"{'none' if terms.clip is None else f'{terms.clip:g}'}; it takes no part in the round"
            )

        if self.noise is not None:
            self._require_noise(terms, self.noise)

    def _require_noise(self, terms: PrivacyTerms, least: float) -> None:
        multiplier, fraction = terms.noise_multiplier, terms.honest_fraction
        if multiplier is None or fraction is None:
            raise InvalidUpdateError(
                "expected noise that clients add, which this client's privacy.noise = 'clients' demands, and it was "
                "asked to add none; it takes no part in the round"
            )
        if multiplier < least or fraction > self.honest_fraction:
            raise InvalidUpdateError(
                f"expected noise of {least:g} or more with an honest fraction of {self.honest_fraction:g} or less, "
                "which this client's privacy.noise_multiplier and privacy.honest_fraction demand, got "
                f"{multiplier:g} and {fraction:g}; it takes no part in the round"
            )

    def require_unmasked(self, does: str) -> None:
        """Check that the client may answer without masks.

        Args:
            does: what it was asked to do, for the message.

        Raises:
            InvalidUpdateError: it may not.
        """
        if self.masked:
            raise InvalidUpdateError(
                f"expected a masked round, which this client's privacy.secure_aggregation demands, and it was asked to "
                f"{does}; set privacy.secure_aggregation = true at the server as well"
            )


ANYTHING = Demands()
"""What a client demands that says nothing."""
