"""How a configuration protects the updates of its clients."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from florist.config.sections.section import Positive, PositiveFloat, Section

FEWEST_CLIENTS = 2
"""A sum of one client is that client's update."""
_Clients = Annotated[int, Field(ge=FEWEST_CLIENTS, strict=True)]
_Fraction = Annotated[float, Field(gt=0.5, le=1, strict=True)]


class PrivacySection(Section):
    """``[privacy]``: what is kept from the server, and from whoever sees the broadcasts; nothing by default.

    ``docs/privacy.md`` says what that protects, and what not.
    """

    secure_aggregation: bool = False
    """Whether updates are summed under masks, so that the server has their sum alone."""
    bits: Annotated[int, Field(ge=2, le=64)] = 32
    """The bits of a number in a masked sum, which all clients share."""
    threshold: _Clients | _Fraction | None = None
    """How many clients have to be left at the end of a masked round, or which fraction of those that it asks; by
    default one more than half, which is the least that is safe."""
    smallest_group: Annotated[int, Field(ge=FEWEST_CLIENTS)] = FEWEST_CLIENTS
    """Over how many clients each number of a masked sum is taken at least."""
    max_examples: Positive = 10_000
    """The largest weight of a client in a masked sum: whoever has more examples counts as one with so many."""
    largest: PositiveFloat = 4.0
    """The largest number of what a client's training changes, in units of the product, in a masked sum without
    a clip. A client with a larger one stays out of the round."""
    clip: PositiveFloat | None = None
    """The norm that each client clips what its training changed to, over all modules and heads together, in units of
    the product; without it nothing is clipped."""
    noise_multiplier: PositiveFloat | None = None
    """The standard deviation of the noise in the sum, over the clip."""
    epsilon: PositiveFloat | None = None
    """What all rounds may spend: they end before a round that would exceed it. Without `noise_multiplier`, the noise is
    computed so that ``federation.rounds`` rounds spend this."""
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The probability that the guarantee of epsilon does not hold; below one over the number of clients."""
    sampling: Literal["fixed", "poisson"] = "fixed"
    """How clients are drawn: so many of them, or each by itself with that probability, which spends less."""
    noise: Literal["server", "clients"] = "server"
    """Who adds the noise: the server, to the sum, or under masks the clients, a share each, so that the server never
    has the sum without."""
    honest_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """The fraction of the clients of a round that follow the protocol and tell nobody their noise, with
    ``noise = "clients"``: the shares of so many have to hide each of them, whoever is lost."""
    adaptive_clip: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The quantile of the clients' norms that the clip follows; by default it stays."""

    @field_validator("threshold", mode="before")
    @classmethod
    def _no_number_of_one(cls, given: object) -> object:
        if type(given) is int and given < FEWEST_CLIENTS:  # which would be read as the fraction 1.0
            raise ValueError(f"expected {FEWEST_CLIENTS} clients or more, or a fraction above 0.5 as 0.6 or 1.0")
        return given

    @property
    def noisy(self) -> bool:
        """Whether the sum gets noise."""
        return self.noise_multiplier is not None or self.epsilon is not None

    @property
    def on(self) -> bool:
        """Whether updates are protected at all."""
        return self.secure_aggregation or self.noisy

    @model_validator(mode="after")
    def _consistent(self) -> "PrivacySection":
        missing = [key for key in ("clip", "delta") if self.noisy and getattr(self, key) is None]
        if missing:
            raise ValueError(f"noise_multiplier and epsilon need {' and '.join(missing)}: set that as well")
        noise_only = [
            f"{key} = {value!r}"
            for key, value in (("delta", self.delta), ("adaptive_clip", self.adaptive_clip))
            if value is not None and not self.noisy
        ]
        noise_only += ["noise = 'clients'"] if self.noise == "clients" and not self.noisy else []
        noise_only += ["sampling = 'poisson'"] if self.sampling == "poisson" and not self.noisy else []
        if noise_only:
            raise ValueError(f"{' and '.join(noise_only)}: set noise_multiplier or epsilon as well, or remove it")
        if self.noise == "clients" and not self.secure_aggregation:
            raise ValueError(
                "noise = 'clients' gives each client a share of the noise, too small to hide it by itself: set "
                "secure_aggregation = true as well, or noise to 'server'"
            )
        if (self.noise == "clients") != (self.honest_fraction is not None):
            raise ValueError(
                f"noise = {self.noise!r} and honest_fraction = {self.honest_fraction}: expected honest_fraction with "
                "noise = 'clients', since only the noise of honest clients counts, and with nothing else; set or "
                "remove it"
            )
        if self.clip is not None and not self.on:
            raise ValueError(
                f"clip = {self.clip} goes with secure_aggregation, noise_multiplier or epsilon: set one of them, or "
                "remove it"
            )
        if self.secure_aggregation and self.sampling == "poisson":
            raise ValueError(
                "sampling = 'poisson' may draw one client, and a masked sum of one client is its update: set sampling "
                "to 'fixed', or secure_aggregation to false"
            )
        return self
