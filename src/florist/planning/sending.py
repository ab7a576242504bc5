"""What each method sends of a module, as ranks: the planner asks this table and never which method it plans.

What clients train, and which halves travel, is asked of the methods themselves (`Aggregator.work`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from florist.config.methods import METHODS, Use
from florist.config.sections import AggregationSection
from florist.planning.architectures import Shape
from florist.planning.population import Population
from florist.rounds import ClientWork, Trained


@dataclass(frozen=True, slots=True)
class ModuleGroup:
    """Adapted modules that cost the same.

    Attributes:
        shape: (out_features, in_features) of each.
        count: how many there are.
        kept: the rank that a rank rule keeps in each, on average over the rounds; infinite where it keeps everything.
    """

    shape: Shape
    count: int
    kept: float = math.inf

    @property
    def limit(self) -> int:
        """The largest rank that a matrix of this shape has."""
        return min(self.shape)


@dataclass(frozen=True, slots=True)
class RoundRanks:
    """What a round is expected to receive; exact where every client is asked.

    Attributes:
        stack: R, the sum of the ranks that came in.
        largest: the largest of them.
        smallest: the smallest of them.
        mean: the mean of the ranks that the clients train.
        clients: how many clients are asked.
    """

    stack: float
    largest: float
    smallest: float
    mean: float
    clients: int

    @classmethod
    def of(cls, population: Population, upload_rank: int | None = None) -> "RoundRanks":
        """The ranks of a population, whose uploads may be cut to a rank."""
        most = upload_rank if upload_rank is not None else math.inf
        return cls(
            stack=population.asked_sum(lambda rank: min(rank, most)),
            largest=min(population.expected_largest, most),
            smallest=min(population.expected_smallest, most),
            mean=population.mean(lambda rank: rank),
            clients=population.asked,
        )


RankOf = Callable[[RoundRanks, ModuleGroup], float]


def _nothing(_ranks: RoundRanks, _group: ModuleGroup) -> float:
    return 0.0


def _unlimited(_group: ModuleGroup) -> float:
    return math.inf


def _smaller_side(group: ModuleGroup) -> float:
    return group.limit


def _in_features(group: ModuleGroup) -> float:
    return group.shape[1]


@dataclass(frozen=True, slots=True)
class Sending:
    """What the broadcast of a method has of a module.

    Attributes:
        shared: the rank of what every client adds.
        continued: the rank of what clients train on from; each takes at most as many components as its own rank.
        own_limit: the most of it that a client can take that took part in the round.
        new_rank: how much another broadcast raises the rank of the sum of several; by default by all of its own.
        paper_rank: the rank that the FLoRIST paper counts for its total rank; None where none travels.
    """

    shared: RankOf = _nothing
    continued: RankOf = _nothing
    own_limit: Callable[[ModuleGroup], float] = _unlimited
    new_rank: RankOf | None = None
    paper_rank: RankOf | None = None

    def growth(self, ranks: RoundRanks, group: ModuleGroup) -> tuple[float, float]:
        """The rank of what one round adds to a module, and by how much each further one raises that of the sum."""
        return self.shared(ranks, group), (self.new_rank or self.shared)(ranks, group)

    def summed_rank(self, ranks: RoundRanks, group: ModuleGroup, rounds: int) -> float:
        """The rank of the sum of what so many rounds, at least one, have added to a module."""
        first, new = self.growth(ranks, group)
        return min(first + (rounds - 1) * new, group.limit)


def _largest(ranks: RoundRanks, _group: ModuleGroup) -> float:
    return ranks.largest


def _mean(ranks: RoundRanks, _group: ModuleGroup) -> float:
    return ranks.mean


def _whole_stack(ranks: RoundRanks, _group: ModuleGroup) -> float:
    return ranks.stack


def _cut_sum(ranks: RoundRanks, group: ModuleGroup) -> float:
    return min(group.kept, ranks.stack, group.limit)


def _cut_rows(ranks: RoundRanks, group: ModuleGroup) -> float:
    return min(group.kept, ranks.largest, group.limit)


def _new_rows(ranks: RoundRanks, group: ModuleGroup) -> float:
    # The rows of a round begin with those of the last broadcast; only the others can be new.
    kept = _cut_rows(ranks, group)
    return min(kept, min(ranks.largest, group.shape[1]) - kept)


def _components(ranks: RoundRanks, group: ModuleGroup) -> float:
    return min(ranks.stack, group.limit)


def _rows(ranks: RoundRanks, group: ModuleGroup) -> float:
    return min(ranks.largest, group.shape[1])


def _residual(ranks: RoundRanks, group: ModuleGroup) -> float:
    # Component i of the residual has as many terms as clients that have the component, and one for all others together;
    # the differences to the mean sum to zero, which takes one away: R - r_min in all.
    return min(ranks.stack - ranks.smallest, group.limit)


def _means_and_residual(ranks: RoundRanks, group: ModuleGroup) -> float:
    return ranks.largest + _residual(ranks, group)


SENDING: Mapping[str, Sending] = {
    "florist": Sending(shared=_cut_sum, paper_rank=_cut_sum),
    "fedit": Sending(continued=_largest, paper_rank=_largest),
    "ffa": Sending(continued=_largest, paper_rank=_largest),
    "flora": Sending(shared=_whole_stack, paper_rank=_whole_stack),
    "flexlora": Sending(continued=_components, own_limit=_smaller_side, paper_rank=_mean),
    "fedex": Sending(shared=_residual, continued=_largest, paper_rank=_means_and_residual),
    "linear": Sending(shared=_cut_rows, new_rank=_new_rows, paper_rank=_cut_rows),
    "fedsvd": Sending(continued=_rows, own_limit=_in_features, paper_rank=_rows),
    "raflora": Sending(continued=_components, own_limit=_smaller_side, paper_rank=_mean),
    "full": Sending(),
}
"""What a method broadcasts, by the name of the method."""


@dataclass(frozen=True, slots=True)
class PlannedMethod:
    """A method as the planner sees it.

    Attributes:
        name: as `METHODS` has it.
        work: what it asks of its clients.
        sending: what it broadcasts.
        cuts_uploads: whether clients may upload less than they trained.
        adds: whether clients add the broadcast, and so choose how the next local adapter starts.
    """

    name: str
    work: ClientWork
    sending: Sending
    cuts_uploads: bool
    adds: bool

    @property
    def shares(self) -> bool:
        """Whether clients add something."""
        return self.sending.shared is not _nothing

    @property
    def continues(self) -> bool:
        """Whether clients train on from something."""
        return self.sending.continued is not _nothing

    @property
    def whole_weights(self) -> bool:
        """Whether weights travel, and no factors."""
        return Trained.WEIGHTS in self.work.trained


def planned_method(name: str) -> PlannedMethod:
    """The method of a name."""
    method = METHODS[name]
    # What a method asks of its clients does not depend on how much it keeps.
    work = method.make(Use(AggregationSection(method=name), largest_rank=1)).work
    adds = method.adds_exact_sum
    return PlannedMethod(name, work, SENDING[name], adds and not method.uncut_uploads, adds)
