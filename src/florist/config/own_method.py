"""Methods that are given as objects: how a configuration says them, where it can, and what they are where it cannot."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from florist.config.communication import contradictions
from florist.config.methods import METHODS, Method, Use, make_aggregator
from florist.config.sections import AggregationSection, CommunicationSection
from florist.errors import ConfigurationError
from florist.ranks import ByteBudget, Capped, EnergyThreshold, FixedRank, GlobalEnergyThreshold, RankRule
from florist.rounds import Aggregator


@dataclass(frozen=True, slots=True)
class OwnMethod:
    """A method that a configuration cannot say.

    Attributes:
        aggregator: the method.
        known: the entry of the table that it is an object of, with a rank rule of its own for instance; None for a
            class that florist does not know.
    """

    aggregator: Aggregator
    known: Method | None

    @property
    def rank_rule(self) -> RankRule | None:
        """The rule that it cuts its sum by, where it is one of florist's that take a rule."""
        return getattr(self.aggregator, "rank_rule", None) if self.known is not None else None

    def sending(self, *, whole_sum: bool) -> Aggregator:
        """The method, or what hands over its whole sum where the communication cuts that."""
        if whole_sum and self.known is not None:
            return self.known.make(Use(AggregationSection(method=self.known.name), 1, whole_sum=True))
        return self.aggregator

    def require_able(self, section: CommunicationSection) -> None:
        """Check that what is not sent now can be sent later, where that is asked for.

        Raises:
            ConfigurationError: the method does not let clients add the exact sum, or florist does not know whether.
        """
        if self.known is not None:
            wrong = contradictions(self.known.name, section)
            if wrong:
                raise ConfigurationError("; ".join(wrong))
        elif section.feedback is not False or section.upload_tau is not None or section.upload_budget is not None:
            raise ConfigurationError(
                "communication: expected no feedback, upload_tau or upload_budget, which are for methods of florist "
                f"whose clients add the exact sum, got {type(self.aggregator).__name__}: leave them out"
            )


def known_method(aggregator: Aggregator) -> Method | None:
    """The entry of the table that an object belongs to, by its class; None for a class that florist does not know."""
    for method in METHODS.values():
        if type(method.make(Use(AggregationSection(method=method.name), 1))) is type(aggregator):
            return method
    return None


def as_keys(aggregator: Aggregator, largest_rank: int) -> Mapping[str, Any] | None:
    """The keys of ``[aggregation]`` that make an equal object; None where no keys do.

    Args:
        aggregator: the object.
        largest_rank: the largest rank that any client trains, which bounds what some methods keep.
    """
    method = known_method(aggregator)
    if method is None:
        return None
    keys: dict[str, Any] = {"method": method.name}
    if "max_rank" in method.keys and hasattr(aggregator, "max_rank"):
        keys["max_rank"] = aggregator.max_rank  # pyright: ignore[reportAttributeAccessIssue]  # as was just asked
    rule = getattr(aggregator, "rank_rule", None)
    if rule is not None:
        said = _rule_keys(rule)
        if said is None:
            return None
        keys |= said
    made = make_aggregator(AggregationSection.model_validate(keys), largest_rank)
    return keys if made == aggregator else None


def _rule_keys(rule: RankRule) -> Mapping[str, Any] | None:
    if isinstance(rule, Capped):
        inner = _rule_keys(rule.rule)
        return None if inner is None or "max_rank" in inner else {**inner, "max_rank": rule.max_rank}
    if isinstance(rule, EnergyThreshold):
        return {"tau": rule.tau}
    if isinstance(rule, GlobalEnergyThreshold):
        return {"tau": rule.tau, "scope": "global"}
    if isinstance(rule, FixedRank):
        return {"rank": rule.rank}
    return {"budget": rule.nbytes} if isinstance(rule, ByteBudget) else None
