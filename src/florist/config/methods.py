"""Names of aggregation methods and rank rules -> the objects."""

from collections.abc import Callable, Mapping

from florist.aggregation import Florist
from florist.config.sections import AggregationSection
from florist.ranks import ByteBudget, Capped, EnergyThreshold, FixedRank, GlobalEnergyThreshold, RankRule
from florist.rounds import Aggregator

DEFAULT_TAU = 0.9

METHODS: Mapping[str, Callable[[AggregationSection], Aggregator]] = {
    "florist": lambda section: Florist(rank_rule(section)),
}


def rank_rule(section: AggregationSection, itemsize: int = 4) -> RankRule:
    """The rank rule of a section.

    Args:
        section: validated, so that at most one of tau, budget and rank is set.
        itemsize: bytes of one stored number, for a budget.
    """
    rule: RankRule
    tau = section.tau if section.tau is not None else DEFAULT_TAU
    if section.budget is not None:
        rule = ByteBudget(int(section.budget), itemsize)
    elif section.rank is not None:
        rule = FixedRank(section.rank)
    elif section.scope == "global":
        rule = GlobalEnergyThreshold(tau)
    else:
        rule = EnergyThreshold(tau)
    return Capped(rule, section.max_rank) if section.max_rank is not None else rule
