"""How many clients there are of which rank, and what a round may expect of those that it asks.

A population is a number of clients for each rank, never a list of clients: all expectations are closed formulas, so
that a million clients cost as much as eight.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from florist.errors import ConfigurationError
from florist.federation.rules import clients_asked


@dataclass(frozen=True)
class Population:
    """The clients of a federation, and the part of them that every round asks.

    Each round draws its clients anew, uniformly and without replacement, as `Federation.participants` does.

    Args:
        counts: the number of clients, by rank.
        fraction: the fraction of the clients that each round asks, rounded up.

    Raises:
        ConfigurationError: there are no clients, a number is not positive, or the fraction is outside (0, 1].
    """

    counts: Mapping[int, int]
    fraction: float = 1.0

    def __post_init__(self) -> None:
        if not self.counts or any(rank < 1 or count < 1 for rank, count in self.counts.items()):
            raise ConfigurationError(f"expected ranks and numbers of clients of at least 1, got {dict(self.counts)}")
        if not 0 < self.fraction <= 1:
            raise ConfigurationError(f"expected a fraction of the clients in (0, 1], got {self.fraction}")

    @property
    def clients(self) -> int:
        """All clients."""
        return sum(self.counts.values())

    @property
    def asked(self) -> int:
        """How many clients a round asks."""
        return clients_asked(self.fraction, self.clients)

    @property
    def asked_share(self) -> float:
        """The probability that a round asks a client."""
        return self.asked / self.clients

    @property
    def smallest_rank(self) -> int:
        """The smallest rank of any client."""
        return min(self.counts)

    @property
    def largest_rank(self) -> int:
        """The largest rank of any client."""
        return max(self.counts)

    def mean(self, value: Callable[[int], float]) -> float:
        """The mean over all clients of what depends on their rank."""
        return sum(count * value(rank) for rank, count in self.counts.items()) / self.clients

    def asked_sum(self, value: Callable[[int], float]) -> float:
        """The expected sum over the clients of a round; exact where every client is asked."""
        share = self.asked_share
        return sum(share * count * value(rank) for rank, count in self.counts.items())

    @cached_property
    def expected_largest(self) -> float:
        """The expected largest rank in a round."""
        return self._expected(lambda low: self._none_of(sum(n for rank, n in self.counts.items() if rank > low)))

    @cached_property
    def expected_smallest(self) -> float:
        """The expected smallest rank in a round."""
        # P(min <= x) is 1 - P(no client of rank <= x).
        return self._expected(lambda low: 1 - self._none_of(sum(n for rank, n in self.counts.items() if rank <= low)))

    def _expected(self, at_most: Callable[[int], float]) -> float:
        """The mean of a rank whose distribution function is given."""
        total, before = 0.0, 0.0
        for rank in sorted(self.counts):
            now = at_most(rank)
            total += rank * (now - before)
            before = now
        return total

    def _none_of(self, some: int) -> float:
        """The probability that a round asks none of so many clients: C(N - some, c) / C(N, c)."""
        if some == 0:
            return 1.0
        if self.asked > self.clients - some:
            return 0.0
        return math.exp(_log_choose(self.clients - some, self.asked) - _log_choose(self.clients, self.asked))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def parse_ranks(text: str, clients: int | None = None) -> dict[int, int]:
    """Read ``64,32,16``, which names the rank of every client, or ``4:40,8:20``, which counts clients of each rank.

    Args:
        text: one rank for all, a list, or counts; a list in which some entries have counts is read likewise.
        clients: how many clients there are. One rank is that of all of them. Counts are shares where they fit into this
            number a whole number of times.

    Returns:
        The number of clients by rank.

    Raises:
        ConfigurationError: the text is neither, or does not fit the number of clients.
    """
    counts: dict[int, int] = {}
    entries = [entry.strip() for entry in text.split(",")]
    for entry in entries:
        rank, _, count = entry.partition(":")
        if not (rank.isdecimal() and (count.isdecimal() or ":" not in entry) and int(rank) and int(count or 1)):
            raise ConfigurationError(
                f"--ranks: expected ranks as 64,32,16, or rank:clients as 4:40,8:20, all from 1 on, got {text!r}"
            )
        counts[int(rank)] = counts.get(int(rank), 0) + int(count or 1)
    listed = sum(counts.values())
    if clients is None or clients == listed:
        return counts
    if clients < 1 or clients % listed:
        raise ConfigurationError(
            f"--ranks names {listed} clients and --clients says {clients}: give one rank for all, as many as there "
            "are, or rank:clients whose sum divides their number"
        )
    return {rank: count * (clients // listed) for rank, count in counts.items()}
