"""The guard and the robust rules of a configuration, by name; what loads torch is imported where it is used."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from florist.errors import ConfigurationError

# ruff: noqa: PLC0415  # what loads torch is imported where it is used

if TYPE_CHECKING:
    from florist.aggregation.robust import RobustRule
    from florist.config.sections import AggregationSection, GuardSection
    from florist.federation.guard import Guard

ROBUST_NAMES = ("clipped-mean", "geometric-median", "multi-krum")
"""The names that ``[aggregation] robust`` may have."""

DEFAULT_HOSTILE = 0.25


def robust_rule(section: "AggregationSection") -> "RobustRule | None":
    """The robust rule of a section; None where it names none."""
    if section.robust is None:
        return None
    from florist.aggregation.robust import MAKERS

    hostile = section.hostile if section.hostile is not None else DEFAULT_HOSTILE
    return MAKERS[section.robust](hostile)


def guard_of(section: "GuardSection") -> "Guard":
    """The guard of a section."""
    from florist.federation.guard import Action, Guard

    return Guard(
        norm_factor=section.norm_factor or None,
        component_factor=section.component_factor or None,
        largest_norm=section.largest_norm or None,
        smallest_cosine=None if section.smallest_cosine is False else float(section.smallest_cosine),
        examples_factor=section.examples_factor or None,
        action=Action(section.action),
    )


def guard_keys(guard: "Guard") -> dict[str, Any]:
    """The keys of ``[guard]`` that make a guard."""
    bounds = {name: False if bound is None else bound for name, bound in asdict(guard).items()}
    return {**bounds, "action": guard.action.value}


def require_no_hostile_alone(robust: str | None, hostile: float | None) -> None:
    """Check that the fraction of hostile clients goes with a rule.

    Raises:
        ConfigurationError: there is no rule.
    """
    if hostile is not None and robust is None:
        raise ConfigurationError(
            f"hostile = {hostile} is for robust rules: set robust to {', '.join(ROBUST_NAMES)}, or remove hostile"
        )
