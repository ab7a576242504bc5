"""The aggregation method of a configuration."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ByteSize, Field, model_validator

from florist.config.method_keys import require_own_keys
from florist.config.methods import (
    DEFAULT_METHOD,
    DEFAULT_TAU,
    FOR_ALL_METHODS,
    HOW_MUCH,
    METHODS,
    OWN,
    method_named,
)
from florist.config.robust import DEFAULT_HOSTILE, ROBUST_NAMES, require_no_hostile_alone
from florist.config.sections.section import Positive, Section, fraction_of, one_of


class AggregationSection(Section):
    """``[aggregation]``: the method, and the keys that it takes (`methods.METHODS`); the others stay unset.

    Where the method takes tau and nothing else says how much to keep, tau gets its default. A configuration that is
    written down therefore says what was done.
    """

    method: Annotated[str, one_of(METHODS, OWN.name)] = DEFAULT_METHOD
    """The name of an aggregation method; ``own`` stands for an object that was given from code."""
    tau: Annotated[float, fraction_of("the energy")] | None = None
    """The fraction of the energy to keep. It is the default way to say how much."""
    scope: Literal["per-module", "global"] | None = None
    """Whether `tau` holds in each module, which is the default, or over all modules together with few parameters."""
    budget: Annotated[ByteSize, Field(gt=0)] | None = None
    """The bytes of the broadcast, as ``"20MB"``: the most energy that fits is kept."""
    rank: Positive | None = None
    """One rank for every module."""
    max_rank: Positive | None = None
    """No module keeps more than this rank, whatever else says how much to keep."""
    noise_edge: Literal[True, "shrunk"] | None = None
    """Keep what stands above the noise of ``[privacy]``, whose size is known, in the place of a fraction; ``"shrunk"``
    also takes off what the noise has added to the singular values."""
    robust: Annotated[str, one_of(ROBUST_NAMES)] | None = None
    """What weights the clients get where some may be hostile: ``clipped-mean``, ``geometric-median`` or ``multi-krum``;
    by default their shares of the examples. It goes with every method."""
    hostile: Annotated[float, Field(ge=0, lt=0.5)] | None = None
    """The largest fraction of hostile clients that `robust` is to withstand; a quarter by default."""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, given: Any) -> Any:
        method = method_named(str(given.get("method", DEFAULT_METHOD))) if isinstance(given, Mapping) else None
        if method is None:
            return given  # which is refused with a reason
        defaults: dict[str, Any] = {"scope": "per-module"}
        if all(given.get(key) is None for key in HOW_MUCH):
            defaults["tau"] = DEFAULT_TAU
        unset = {key: value for key, value in defaults.items() if key in method.keys and given.get(key) is None}
        if given.get("robust") in ROBUST_NAMES and given.get("hostile") is None:
            unset["hostile"] = DEFAULT_HOSTILE
        return {**given, **unset}

    @model_validator(mode="after")
    def _consistent(self) -> "AggregationSection":
        given = self.model_dump(exclude={"method", *FOR_ALL_METHODS}, exclude_none=True)
        require_own_keys(method_named(self.method) or OWN, given)
        require_no_hostile_alone(self.robust, self.hostile)
        rules = {name: value for name in HOW_MUCH if (value := getattr(self, name)) is not None}
        if len(rules) > 1:
            given = " and ".join(f"{name} = {value}" for name, value in rules.items())
            raise ValueError(f"{given} contradict each other: each says how much to keep; set one")
        if self.scope == "global" and "tau" not in rules:
            raise ValueError(f"scope = 'global' goes with tau, not with {next(iter(rules))}")
        return self
