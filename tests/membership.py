"""Membership attacks as plain functions, for tests and for ``benchmarks/membership.py``.

Two attackers decide whether a client was in a federation:

- `KnownRound` is the adversary of the definition of differential privacy. It knows all but that: the updates of all
  clients, the target's included, the rows of A, who of the others took part, and how large the noise is. It sees the
  noisy sum of each round, of which a broadcast is a part. Its likelihood ratio is exact, and no test is better.
- `likelihood_ratios` is the attack by shadow runs: it fits what it sees of a run, one number a client, by one Gaussian
  over runs with the client and one over runs without (LiRA; Carlini et al., 2022, arXiv:2112.03570).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from florist.federation.contributions import Contribution
from florist.federation.private_rounds import PrivateRounds
from florist.federation.private_sums import plain_sum
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.federation.summed import change_of
from florist.privacy.accounting import Accountant, Sampling
from florist.privacy.clipping import Change
from florist.rounds import ClientUpdate


@dataclass(frozen=True, slots=True, eq=False)
class KnownRound:
    """A round of which everything is known but whether a client is in the federation.

    Attributes:
        private: how the round is protected, with noise by the server or none.
        federation: the rules. The target has a place in them in both worlds: how many clients there are is public.
        state: the state before the round.
        given: what every client sends where it is drawn, after the clip; the target as well.
        target: the client.
        instead: what is sent in its place in the world without it, as a multiple of its update: 0 for nothing, -1 for
            the opposite, by which a sum changes most when one client takes the place of another.
        sums: the sums that were taken so far, by who is in them.
    """

    private: PrivateRounds
    federation: Federation
    state: ServerState
    given: Mapping[str, Contribution]
    target: str
    instead: float
    sums: dict[tuple[str, ...], Change] = field(default_factory=dict[tuple[str, ...], Change])

    @classmethod
    def of(
        cls,
        private: PrivateRounds,
        federation: Federation,
        state: ServerState,
        updates: Sequence[ClientUpdate],
        target: str,
        instead: float,
    ) -> "KnownRound":
        """A round from what the clients trained, of whom each bounds what it sends as in any round."""
        bounding = private.bounding(federation, state.saved_parameters)
        given = {
            update.client_id: bounding.contribution(
                change_of(state.continued, state.saved_parameters, update), update.num_examples
            )
            for update in updates
        }
        if instead and federation.clients_per_round < len(federation.client_ranks):
            raise ValueError(
                "expected nothing in the place of the target where a round draws: who else was drawn depends on it"
            )
        return cls(private, federation, state, given, target, instead)

    def evidence(self, seed: int, *, member: bool) -> float:
        """Draw participants and noise, and weigh what is seen.

        Args:
            seed: the seed of both draws.
            member: whether the target is in the federation.

        Returns:
            The logarithm of how much more likely the noisy sum is with the target than without.
        """
        number, rules = self.state.round_number + 1, replace(self.federation, seed=seed)
        drawn = self.private.participants(rules, number)
        others = self.sum_of(tuple(name for name in drawn if name != self.target))
        total = others
        if self.target in drawn:
            total = _plus(others, self.own.times(1.0 if member else self.instead))
        return self.weighed(self.noisy(rules, total), others)

    def noisy(self, rules: Federation, total: Change) -> Change:
        """A sum with the noise of the round, by the code that plays it."""
        noise, clip = self.private.noise, self.private.clip
        if noise is None or clip is None:
            return total
        return noise.added(rules, self.state.round_number + 1, total, clip, secret=False)[0]

    def weighed(self, seen: Change, others: Change) -> float:
        """The log likelihood ratio of a noisy sum, by what the others have sent.

        With noise of variance s^2, the update v and a multiple c of it in its place, it is
        ``((1 - c) <seen - others, v> - (1 - c^2) |v|^2 / 2) / s^2`` where the target is drawn for certain; and
        ``log(1 - q + q exp(that))`` where it is drawn with a probability q.
        """
        own = self.own
        size, along = _inner(own, own), _inner(seen, own) - _inner(others, own)
        above = (1 - self.instead) * along - (1 - self.instead**2) * size / 2
        noise, clip = self.private.noise, self.private.clip
        if noise is None or clip is None:
            ratio = math.copysign(math.inf, above)
        else:
            ratio = above / (noise.multiplier * clip) ** 2
        drawn = self.federation.clients_per_round / len(self.federation.client_ranks)
        return ratio if drawn == 1 else float(np.logaddexp(math.log1p(-drawn), math.log(drawn) + ratio))

    @property
    def own(self) -> Change:
        """What the target sends, in every number that a client might change."""
        return self.sum_of((self.target,))

    def sum_of(self, clients: tuple[str, ...]) -> Change:
        """The sum of what some clients send, without noise."""
        if clients not in self.sums:
            shapes = {name: tuple(tensor.shape) for name, tensor in self.state.saved_parameters.items()}
            self.sums[clients] = plain_sum(self.federation, shapes, {name: self.given[name] for name in clients})
        return self.sums[clients]


def evidence_of(rounds: Sequence[KnownRound], runs: int, *, member: bool, first_seed: int) -> NDArray[np.float64]:
    """The evidence of all rounds together, over runs that draw participants and noise anew.

    Args:
        rounds: the rounds, along one trajectory.
        runs: how many times they are played.
        member: whether the target is in the federation.
        first_seed: the seed of the first run; the others follow.
    """
    return np.array(
        [sum(each.evidence(seed, member=member) for each in rounds) for seed in range(first_seed, first_seed + runs)]
    )


@dataclass(frozen=True, slots=True)
class Guesses:
    """How often an attacker says that a client was there, in so many trials with it and without.

    Attributes:
        hits: how often it says so of `members` trials with it.
        false_alarms: how often of `others` trials without.
    """

    hits: int
    members: int
    false_alarms: int
    others: int

    @classmethod
    def at(cls, threshold: float, present: NDArray[np.float64], absent: NDArray[np.float64]) -> "Guesses":
        """Those of an attacker that says so where its evidence is above a threshold."""
        return cls(int((present > threshold).sum()), len(present), int((absent > threshold).sum()), len(absent))

    @property
    def advantage(self) -> float:
        """The rate of hits less that of false alarms."""
        return self.hits / self.members - self.false_alarms / self.others

    def rates(self, confidence: float = 0.95) -> tuple[tuple[float, float], tuple[float, float]]:
        """Intervals that together hold both rates with a confidence, by Clopper and Pearson."""
        from scipy.stats import beta  # it comes with dp-accounting, which is in an extra

        def of(count: int, trials: int) -> tuple[float, float]:
            tail = (1 - confidence) / 4
            low = 0.0 if count == 0 else float(beta.ppf(tail, count, trials - count + 1))
            high = 1.0 if count == trials else float(beta.ppf(1 - tail, count + 1, trials - count))
            return low, high

        return of(self.hits, self.members), of(self.false_alarms, self.others)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """An interval that holds the advantage with a confidence."""
        (low, high), (false_low, false_high) = self.rates(confidence)
        return low - false_high, high - false_low

    def epsilon(self, delta: float, confidence: float = 0.95) -> float:
        """The epsilon that these guesses refute: with that confidence, the true one is not smaller.

        It is (epsilon, delta) private only if ``hits <= e^epsilon false alarms + delta``, and the same for the
        guesses that a client was not there.
        """
        (low, _), (_, false_high) = self.rates(confidence)
        bounds = [(low - delta, false_high), (1 - false_high - delta, 1 - low)]
        return max(0.0, *(math.log(above / below) for above, below in bounds if above > 0 and below > 0))


def epsilon_shown(present: NDArray[np.float64], absent: NDArray[np.float64], delta: float) -> float:
    """The largest epsilon that evidence refutes. Half of it says at which threshold, and the other half how often."""
    half, rest = (present[::2], absent[::2]), (present[1::2], absent[1::2])
    thresholds = np.quantile(np.concatenate(half), np.arange(0.01, 1.0, 0.01), method="nearest")
    best = max(thresholds, key=lambda each: Guesses.at(float(each), *half).epsilon(delta))
    return Guesses.at(float(best), *rest).epsilon(delta)


def permitted_advantage(epsilon: float, delta: float) -> float:
    """The largest advantage that any (epsilon, delta) private mechanism allows (Kairouz, Oh and Viswanath, 2015).

    >>> round(permitted_advantage(1.0, 0.0), 3), permitted_advantage(0.0, 0.0)
    (0.462, 0.0)
    """
    return (math.exp(epsilon) - 1 + 2 * delta) / (math.exp(epsilon) + 1)


def possible_advantage(accountant: Accountant, rounds: int) -> float:
    """The largest advantage over the noise of so many rounds, which the best test has and no other exceeds.

    It is the delta of epsilon 0, computed from distributions of privacy losses, and not from Renyi divergences as
    epsilon is. Draws without replacement are not computed: with them, every client has to be asked.
    """
    import dp_accounting  # it is in an extra
    from dp_accounting import pld

    poisson = accountant.sampling is Sampling.POISSON
    if not poisson and accountant.asked < accountant.clients:
        raise ValueError(f"expected {accountant.clients} clients a round, got {accountant.asked}")
    # One client in the place of another moves the sum by twice the clip.
    event = dp_accounting.GaussianDpEvent(accountant.noise_multiplier / (1 if poisson else 2))
    spent = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    spent.compose(dp_accounting.PoissonSampledDpEvent(accountant.asked / accountant.clients, event), rounds)
    return float(spent.get_delta(0.0))


# --- by shadow runs


def likelihood_ratios(seen: NDArray[np.float64], members: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How much more likely each run's number of each client is with the client in it, as a logarithm.

    Args:
        seen: (runs, clients), the number that the attacker sees: a loss for instance.
        members: (runs, clients), who was in which run. What is said of a run is fitted to all others.

    Returns:
        (runs, clients).
    """
    found = np.empty_like(seen)
    for run in range(len(seen)):
        others = np.arange(len(seen)) != run
        for client in range(seen.shape[1]):
            own, inside = seen[others, client], members[others, client]
            found[run, client] = _log_density(seen[run, client], own[inside]) - _log_density(
                seen[run, client], own[~inside]
            )
    return found


@dataclass(frozen=True, slots=True)
class Separation:
    """How well evidence tells members from others, with intervals of 95% from drawing runs again.

    Attributes:
        advantage: the rate of hits less that of false alarms, where evidence above 0 means a member.
        auc: the probability that a member has more evidence than one that is none.
        hits: the rate of hits at a rate of false alarms of 1%.
    """

    advantage: tuple[float, float, float]
    auc: tuple[float, float, float]
    hits: tuple[float, float, float]

    @classmethod
    def of(cls, evidence: NDArray[np.float64], members: NDArray[np.bool_], draws: int = 500) -> "Separation":
        """Measure it over all clients of all runs, (runs, clients) each."""
        random = np.random.default_rng(0)
        again = [random.integers(0, len(evidence), len(evidence)) for _ in range(draws)]

        def measured(of: Callable[[NDArray[np.float64], NDArray[np.float64]], float]) -> tuple[float, float, float]:
            drawn = [of(evidence[rows][members[rows]], evidence[rows][~members[rows]]) for rows in again]
            low, high = np.quantile(drawn, [0.025, 0.975])
            return of(evidence[members], evidence[~members]), float(low), float(high)

        return cls(measured(lambda a, b: Guesses.at(0.0, a, b).advantage), measured(area), measured(hits_at))


def area(present: NDArray[np.float64], absent: NDArray[np.float64]) -> float:
    """The area under the curve of hits over false alarms; ties count half."""
    ordered = np.sort(absent)
    below = np.searchsorted(ordered, present, "left") + np.searchsorted(ordered, present, "right")
    return float(below.mean() / 2 / len(absent))


def hits_at(present: NDArray[np.float64], absent: NDArray[np.float64], false_alarms: float = 0.01) -> float:
    """The rate of hits at a threshold above which at most such a fraction of the others is."""
    allowed = math.floor(false_alarms * len(absent))
    return float((present > np.sort(absent)[len(absent) - allowed - 1]).mean())


def _log_density(at: float, drawn: NDArray[np.float64]) -> float:
    spread = max(float(drawn.std(ddof=1)), 1e-12)
    return -math.log(spread) - ((at - float(drawn.mean())) / spread) ** 2 / 2


def _inner(one: Change, other: Change) -> float:
    both = [(tensor, other.B[name]) for name, tensor in one.B.items()]
    both += [(tensor, other.saved_parameters[name]) for name, tensor in one.saved_parameters.items()]
    return sum(float(torch.dot(a.flatten(), b.flatten())) for a, b in both)


def _plus(one: Change, other: Change) -> Change:
    return Change(
        {name: tensor + other.B[name] for name, tensor in one.B.items()},
        {name: tensor + other.saved_parameters[name] for name, tensor in one.saved_parameters.items()},
    )
