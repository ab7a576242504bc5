"""What the noisy rounds of a federation have spent of its clients' privacy, by the accountants of `dp-accounting`."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from florist.errors import ConfigurationError, MissingDependencyError, how_to_install

ORDERS = (*(1 + k / 4 for k in range(1, 4)), *range(2, 65), 80, 96, 128, 192, 256, 384, 512)
"""The orders of Renyi divergence among which the accountant looks for the smallest epsilon."""
_MOST_NOISE = 1e6


class Sampling(StrEnum):
    """How the clients of a round are drawn, and what a neighbouring federation is then."""

    FIXED = "fixed"
    """So many of all clients, without replacement. A neighbour has another client in the place of one, whose sum may
    differ by twice the clip."""
    POISSON = "poisson"
    """Each client by itself, with the probability of the fraction. A neighbour has a client more or less, whose sum may
    differ by the clip."""


@dataclass(frozen=True, slots=True)
class Accountant:
    """The (epsilon, delta) that a number of noisy rounds guarantees to each client, with all of its data.

    The Gaussian mechanism, subsampled as florist draws clients, composed by Renyi differential privacy (I. Mironov,
    arXiv:1702.07476; Wang, Balle and Kasiviswanathan, arXiv:1808.00087, for draws without replacement).

    Args:
        noise_multiplier: the standard deviation of the noise in the sum, over the clip.
        delta: the probability that the guarantee does not hold; well below one over the number of clients.
        clients: how many clients there are.
        asked: how many a round draws; for Poisson sampling on average.
        sampling: how they are drawn.

    Raises:
        ConfigurationError: a number is out of range.
    """

    noise_multiplier: float
    delta: float
    clients: int
    asked: int
    sampling: Sampling = Sampling.FIXED

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not self.noise_multiplier > 0:
            raise ConfigurationError(
                f"expected a noise multiplier above 0 to account for, got {self.noise_multiplier}: without noise there "
                "is no epsilon"
            )
        if not 0 < self.delta < 1 / self.clients:
            raise ConfigurationError(
                f"expected 0 < delta < 1/{self.clients}, one over the number of clients, got {self.delta}: a larger "
                "one allows to publish a client"
            )
        if not 1 <= self.asked <= self.clients:
            raise ConfigurationError(f"expected 1 to {self.clients} clients a round, got {self.asked}")

    def epsilon(self, rounds: int) -> float:
        """The epsilon of so many rounds.

        Cost: some tens of milliseconds; it is the same for each call with the same numbers.
        """
        return _epsilon(self, rounds) if rounds else 0.0

    def rounds_within(self, epsilon: float, most: int) -> int:
        """How many rounds, at most `most`, stay within an epsilon.

        Cost: that of `epsilon`, as often as `most` can be halved.
        """
        return _last(lambda rounds: self.epsilon(rounds) <= epsilon, most)


def noise_for(
    epsilon: float, rounds: int, *, delta: float, clients: int, asked: int, sampling: Sampling = Sampling.FIXED
) -> float:
    """The smallest noise multiplier, to three digits, with which so many rounds stay within an epsilon.

    Raises:
        ConfigurationError: no noise up to a million does, or a number is out of range.

    Cost: some twenty times that of `Accountant.epsilon`.
    """

    def holds(noise: float) -> bool:
        return Accountant(noise, delta, clients, asked, sampling).epsilon(rounds) <= epsilon

    if epsilon <= 0:
        raise ConfigurationError(f"expected an epsilon above 0, got {epsilon}")
    low, high = 0.0, 1.0
    while not holds(high):
        low, high = high, 2 * high
        if high > _MOST_NOISE:
            raise ConfigurationError(f"expected an epsilon that noise can give in {rounds} rounds, got {epsilon}")
    while high - low > high / 2000:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _last(holds: Callable[[int], bool], most: int) -> int:
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


@cache
def _epsilon(accountant: Accountant, rounds: int) -> float:
    try:
        import dp_accounting  # noqa: PLC0415  # scipy comes with it, and most runs need neither
        from dp_accounting import rdp  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"[privacy] noise is accounted for by dp-accounting, and {error.name} is not installed: "
            f"{how_to_install('privacy')}"
        ) from error
    if accountant.sampling is Sampling.POISSON:
        neighbours = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
        noise = dp_accounting.GaussianDpEvent(accountant.noise_multiplier)
        event = dp_accounting.PoissonSampledDpEvent(accountant.asked / accountant.clients, noise)
    else:
        # One client in the place of another moves the sum by twice the clip.
        neighbours = dp_accounting.NeighboringRelation.REPLACE_ONE
        noise = dp_accounting.GaussianDpEvent(accountant.noise_multiplier / 2)
        event = dp_accounting.SampledWithoutReplacementDpEvent(accountant.clients, accountant.asked, noise)
    spent = rdp.RdpAccountant(ORDERS, neighbours)
    spent.compose(event, rounds)
    return float(spent.get_epsilon(accountant.delta))
