"""The guard of a configuration."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from florist.config.sections.section import Section


def _false(given: bool) -> bool:  # noqa: FBT001  # it is what was given
    if given:
        raise ValueError("expected a number, or false to turn the check off")
    return given


_Off = Annotated[bool, Field(strict=True), AfterValidator(_false)]
_Factor = Annotated[float, Field(gt=1, strict=True)]


class GuardSection(Section):
    """``[guard]``: which updates are refused, or scaled down, before they are aggregated; ``false`` turns a check off.

    The defaults are far from what honest clients send. ``docs/hostile-clients.md`` says what the checks see, and what
    they do not.
    """

    norm_factor: _Factor | _Off = 10.0
    """How many times the median norm of the other clients of the round the norm of an update may be."""
    component_factor: _Factor | _Off = False
    """How many times the median of the other clients the norm of an update over the root of its rank may be. It sees
    more than `norm_factor` where clients train equally many steps with one ratio of alpha to r."""
    largest_norm: Annotated[float, Field(gt=0, strict=True)] | _Off = False
    """The largest norm of an update, whatever the others send."""
    smallest_cosine: Annotated[float, Field(ge=-1, lt=1, strict=True)] | _Off = False
    """The smallest mean cosine between an update and the others, from three clients on. Clients whose data have nothing
    in common are near 0."""
    examples_factor: _Factor | _Off = 10.0
    """By what factor a client may claim more, or fewer, examples than in the first round in which it counted."""
    action: Literal["refuse", "clip"] = "refuse"
    """Whether an update that is too long is refused, or scaled down to the longest that is allowed."""
