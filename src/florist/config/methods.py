"""Names of aggregation methods, starts of local adapters and rank rules -> the objects."""

from collections.abc import Callable, Mapping

from florist.aggregation import FedEx, FedIt, FfaLora, FlexLora, Flora, Florist, FullFineTuning
from florist.config.sections import AggregationSection
from florist.federation.local_init import Aligned, Fresh, LocalInit, Warm
from florist.ranks import ByteBudget, Capped, EnergyThreshold, FixedRank, GlobalEnergyThreshold, RankRule
from florist.rounds import Aggregator

DEFAULT_TAU = 0.9

METHODS: Mapping[str, Callable[[AggregationSection, int], Aggregator]] = {
    "florist": lambda section, _: Florist(rank_rule(section)),
    "fedit": lambda _, __: FedIt(),
    "ffa": lambda _, __: FfaLora(),
    "flora": lambda _, __: Flora(),
    "flexlora": lambda _, largest_rank: FlexLora(largest_rank),
    "fedex": lambda _, __: FedEx(),
    "full": lambda _, __: FullFineTuning(),
}
"""From the section and the largest rank of any client."""

ONE_SHOT: Mapping[str, Callable[[AggregationSection, int, int], Aggregator]] = {
    "florist": lambda section, _, itemsize: Florist(rank_rule(section, itemsize)),
    "fedit": lambda _, __, ___: FedIt(),
    "flora": lambda _, __, ___: Flora(),
    "flexlora": lambda section, largest_rank, _: FlexLora(section.max_rank or largest_rank),
    "fedex": lambda _, __, ___: FedEx(),
}
"""For saved adapters: from the section, their largest rank and the bytes of a stored number."""

LOCAL_INITS: Mapping[str, Callable[[], LocalInit]] = {"fresh": Fresh, "aligned": Aligned, "warm": Warm}


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
