"""The one table of aggregation methods, and beside it the starts of local adapters and the rank rules.

A method is one entry of `METHODS`. Everything that knows methods by name derives it from there: the configuration, the
commands with their help and refusals, and the table in ``docs/methods.md``. The table can be read without torch, which
is loaded when an object is made.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import florist  # its names load their modules, and torch with them, when they are first used
from florist.errors import ConfigurationError

if TYPE_CHECKING:
    from florist.config.sections import AggregationSection
    from florist.federation.local_init import LocalInit
    from florist.ranks import RankRule
    from florist.rounds import Aggregator

DEFAULT_METHOD = "florist"
DEFAULT_TAU = 0.9
DEFAULT_LOCAL_INIT = "aligned"

HOW_MUCH = ("tau", "budget", "rank", "noise_edge")
"""The keys of ``[aggregation]`` that say how much to keep. At most one of them is set."""

FOR_ALL_METHODS = ("robust", "hostile")
"""The keys of ``[aggregation]`` that go with every method."""


_BOTH_HALVES = (
    "its clients send both halves of a product: a clip of B and of A apart does not bound their product, and noise on "
    "both would be multiplied"
)


@dataclass(frozen=True, slots=True)
class Use:
    """What the object of a method may depend on.

    Attributes:
        section: a validated one, which names the method.
        largest_rank: the largest rank that any client trains.
        itemsize: bytes of one number of the broadcast as it is stored or sent; a budget counts them.
        overhead: bytes of one direction beside its numbers; a budget counts them as well.
        whole_sum: whether the broadcast is cut after the aggregation, which then hands over the whole sum.
    """

    section: "AggregationSection"
    largest_rank: int
    itemsize: float = 4
    overhead: int = 0
    whole_sum: bool = False


@dataclass(frozen=True, slots=True)
class Method:
    """What florist knows of an aggregation method apart from its code.

    Attributes:
        name: what ``[aggregation] method`` and ``--method`` call it.
        title: what its paper calls it.
        arxiv: the number of the paper; None for florist's own.
        summary: what is sent and what becomes of it, in one or two sentences.
        make: the object, for a use of the method.
        keys: the other keys of ``[aggregation]`` that it takes.
        adds_exact_sum: whether clients add the exact sum of what they trained, so that what is not sent of it can be
            sent later.
        preset: how its updates and broadcasts travel by default, as a preset of ``[communication]``.
        uncut_uploads: whether clients upload B alone, which is no factor of its own that could be cut.
        not_one_shot: why it cannot combine saved adapters, with the method as the subject; None where it can.
        not_private: why its updates cannot be clipped, masked and given noise, with the method as the subject; None
            where what clients send is linear in what is secret.
    """

    name: str
    title: str
    arxiv: str | None
    summary: str
    make: "Callable[[Use], Aggregator]"
    keys: tuple[str, ...] = ()
    adds_exact_sum: bool = False
    preset: str = "plain"
    uncut_uploads: bool = False
    not_one_shot: str | None = None
    not_private: str | None = _BOTH_HALVES


_METHODS = (
    Method(
        name="florist",
        title="FLoRIST",
        arxiv="2506.09199",
        summary="The server sends the exact sum, cut by a rank rule. Clients add it.",
        make=lambda use: _whole_sum() if use.whole_sum else florist.Florist(_rule(use)),
        keys=("tau", "scope", "budget", "rank", "max_rank"),
        adds_exact_sum=True,
        preset="compact",
    ),
    Method(
        name="fedit",
        title="FedIT",
        arxiv="2305.05644",
        summary="The server sends the mean of B and the mean of A, whose product is not the exact sum. "
        "Clients train on from them.",
        make=lambda _: florist.FedIt(),
    ),
    Method(
        name="ffa",
        title="FFA-LoRA",
        arxiv="2403.12313",
        summary="Clients train B alone, over one random A. The server sends the mean of B, which is exact. "
        "Clients train on from it.",
        make=lambda _: florist.FfaLora(),
        not_one_shot="it averages B over one A that nobody has trained, and saved adapters have trained theirs",
        not_private=None,
    ),
    Method(
        name="flora",
        title="FLoRA",
        arxiv="2409.05976",
        summary="The server sends the exact sum, as the stack of all factors. Clients add it.",
        make=lambda use: _whole_sum() if use.whole_sum else florist.Flora(),
        adds_exact_sum=True,
    ),
    Method(
        name="flexlora",
        title="FlexLoRA",
        arxiv="2402.11505",
        summary="The server sends the exact sum, cut to the largest rank of a client. "
        "Each client trains on from as many components as its own rank.",
        make=lambda use: florist.FlexLora(min(use.section.max_rank or use.largest_rank, use.largest_rank)),
        keys=("max_rank",),
    ),
    Method(
        name="fedex",
        title="FedEx-LoRA",
        arxiv="2410.09432",
        summary="The server sends FedIT's means, and what they lack of the exact sum. "
        "Clients train on from the means and add the rest.",
        make=lambda _: florist.FedEx(),
    ),
    Method(
        name="linear",
        title="Linear rounds",
        arxiv=None,
        summary="Clients train B alone, along rows of A that everybody derives from the last broadcast. "
        "The server sends the exact sum, cut by a rank rule. Clients add it.",
        make=lambda use: florist.LinearRounds(florist.EnergyThreshold(1.0) if use.whole_sum else _rule(use)),
        keys=("tau", "scope", "budget", "rank", "max_rank", "noise_edge"),
        adds_exact_sum=True,
        uncut_uploads=True,
        not_one_shot="it sums B along one A that nobody has trained, and saved adapters have trained theirs",
        not_private=None,
    ),
    Method(
        name="fedsvd",
        title="FedSVD",
        arxiv="2505.12805",
        summary="Clients train B alone. The server sends the mean of B along A, which is exact, decomposed so that "
        "the rows of A are orthonormal. Clients train on from it.",
        make=lambda _: florist.FedSvd(),
        not_one_shot="it averages B over one A that nobody has trained, and saved adapters have trained theirs",
        not_private="the server turns the rows of A under B in every round, for which changes of B are not counted yet",
    ),
    Method(
        name="raflora",
        title="raFLoRA",
        arxiv="2602.13486",
        summary="As FlexLoRA, but each component is averaged over the clients that have it alone.",
        make=lambda use: florist.RaFlora(min(use.section.max_rank or use.largest_rank, use.largest_rank)),
        keys=("max_rank",),
    ),
    Method(
        name="full",
        title="Full fine-tuning",
        arxiv="1602.05629",
        summary="Clients train the weights of the targeted modules, without adapters. The server sends their mean.",
        make=lambda _: florist.FullFineTuning(),
        not_one_shot="it averages whole weights, and saved adapters hold factors",
        not_private="its clients send whole weights, whose noise would be as large as the model",
    ),
)

METHODS: Mapping[str, Method] = {method.name: method for method in _METHODS}

OWN = Method(
    name="own",
    title="A method of one's own",
    arxiv=None,
    summary="An object that was given from code.",
    make=lambda _: _refuse_own(),
    adds_exact_sum=True,  # as far as a configuration knows: whoever has the object knows better
    not_private="of an object that code gave it is not known whether what its clients send may be summed",
)
"""What a configuration calls a method that it cannot say, an object of another class or with another rank rule."""


def method_named(name: str) -> Method | None:
    """The method of a name, `OWN` included; None for an unknown name."""
    return OWN if name == OWN.name else METHODS.get(name)


# The classes themselves in the place of these functions would be looked up, and torch loaded, with the table.
LOCAL_INITS: "Mapping[str, Callable[[], LocalInit]]" = {
    "fresh": lambda: florist.Fresh(),  # noqa: PLW0108
    "aligned": lambda: florist.Aligned(),  # noqa: PLW0108
    "warm": lambda: florist.Warm(),  # noqa: PLW0108
}


def make_aggregator(
    section: "AggregationSection",
    largest_rank: int,
    itemsize: float = 4,
    overhead: int = 0,
    *,
    whole_sum: bool = False,
) -> "Aggregator":
    """The method of a section.

    Args:
        section: a validated one.
        largest_rank: the largest rank that any client trains.
        itemsize: bytes of one number of the broadcast as it is stored or sent; a budget counts them.
        overhead: bytes of one direction beside its numbers; a budget counts them as well.
        whole_sum: whether the broadcast is cut after the aggregation.
    """
    return (method_named(section.method) or OWN).make(Use(section, largest_rank, itemsize, overhead, whole_sum))


def rank_rule(section: "AggregationSection", itemsize: float = 4, overhead: int = 0) -> "RankRule":
    """The rank rule of a section.

    Args:
        section: a validated one, which sets exactly one of tau, budget and rank if its method takes them.
        itemsize: bytes of one stored or sent number; a budget counts them.
        overhead: bytes of one direction beside its numbers; a budget counts them as well.

    Raises:
        ConfigurationError: the method of the section takes no rank rule.
    """
    rule: RankRule
    if section.tau is not None:
        rule = (florist.GlobalEnergyThreshold if section.scope == "global" else florist.EnergyThreshold)(section.tau)
    elif section.budget is not None:
        rule = florist.ByteBudget(int(section.budget), itemsize, overhead)
    elif section.rank is not None:
        rule = florist.FixedRank(section.rank)
    elif section.noise_edge:
        # Without noise everything stands above it; each round of a run has the rule for its own noise.
        rule = florist.NoiseEdge(0.0, 1)
    else:
        raise ConfigurationError(
            f"expected one of {', '.join(HOW_MUCH)}, which method = {section.method!r} does not take"
        )
    return florist.Capped(rule, section.max_rank) if section.max_rank is not None else rule


def _refuse_own() -> "Aggregator":
    raise ConfigurationError(
        f"aggregation.method = {OWN.name!r}: expected one of {', '.join(METHODS)}, and {OWN.name} is an object that "
        "only code has; give it to florist.simulate"
    )


def _whole_sum() -> "Aggregator":
    from florist.aggregation import WholeSum  # noqa: PLC0415  # it loads torch

    return WholeSum()


def _rule(use: Use) -> "RankRule":
    return rank_rule(use.section, use.itemsize, use.overhead)
