"""Epsilon against what was published, and against the sampling that florist does."""

import math

import pytest

from florist.errors import ConfigurationError
from florist.privacy.accounting import Accountant, Sampling, noise_for


def test_the_moments_accountant_of_abadi_et_al() -> None:
    """arXiv:1607.00133, figure 2: q = 0.01, sigma = 4, delta = 1e-5, 100 epochs of 100 steps: 1.26."""
    found = Accountant(4.0, 1e-5, 60_000, 600, Sampling.POISSON).epsilon(10_000)
    assert 0.9 < found <= 1.26


def test_the_tutorial_of_tensorflow_privacy() -> None:
    """MNIST: 60,000 examples, batches of 250, noise 1.3, 15 epochs, delta 1e-5: 1.18 by Renyi."""
    found = Accountant(1.3, 1e-5, 60_000, 250, Sampling.POISSON).epsilon(15 * 240)
    assert 0.9 < found <= 1.19  # its conversion from Renyi was looser than that of today


def test_one_round_of_all_clients_is_the_gaussian_mechanism() -> None:
    """Balle and Wang, arXiv:1805.06530: the exact delta of the Gaussian mechanism bounds the accountant from below."""

    def exact_delta(epsilon: float, noise: float) -> float:
        def phi(x: float) -> float:
            return 0.5 * math.erfc(-x / math.sqrt(2))

        a, b = 1 / (2 * noise), epsilon * noise
        return phi(a - b) - math.exp(epsilon) * phi(-a - b)

    for noise in (1.0, 3.0):
        for sampling, sensitivity in ((Sampling.POISSON, 1.0), (Sampling.FIXED, 2.0)):
            epsilon = Accountant(noise, 1e-4, 100, 100, sampling).epsilon(1)
            assert exact_delta(epsilon, noise / sensitivity) <= 1e-4
            assert exact_delta(0.8 * epsilon, noise / sensitivity) > 1e-4


def test_draws_without_replacement_cost_more_than_poisson() -> None:
    fixed, poisson = (Accountant(4.0, 1e-3, 200, 50, sampling).epsilon(10) for sampling in Sampling)
    assert 3 * poisson < fixed < 8 * poisson


def test_epsilon_grows_with_rounds_and_shrinks_with_noise() -> None:
    found = [Accountant(2.0, 1e-3, 200, 50).epsilon(rounds) for rounds in (0, 1, 5, 20)]
    assert found == sorted(found)
    assert found[0] == 0
    assert Accountant(4.0, 1e-3, 200, 50).epsilon(5) < found[2]


@pytest.mark.slow
@pytest.mark.parametrize("sampling", Sampling)
def test_the_noise_for_an_epsilon_just_suffices(sampling: Sampling) -> None:
    noise = noise_for(3.0, 10, delta=1e-3, clients=200, asked=50, sampling=sampling)
    assert 2.95 < Accountant(noise, 1e-3, 200, 50, sampling).epsilon(10) <= 3.0
    assert Accountant(noise, 1e-3, 200, 50, sampling).rounds_within(3.0, 100) == 10
    assert Accountant(noise, 1e-3, 200, 50, sampling).rounds_within(3.0, 4) == 4
    assert Accountant(noise, 1e-3, 200, 50, sampling).rounds_within(1e-9, 100) == 0


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0.0, 1e-3, 200, 50), "above 0"),
        ((float("nan"), 1e-3, 200, 50), "above 0"),
        ((1.0, 0.01, 200, 50), "delta < 1/200"),
        ((1.0, 0.0, 200, 50), "delta"),
        ((1.0, 1e-3, 200, 201), "1 to 200 clients"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers: tuple[float, float, int, int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Accountant(*numbers)


def test_an_epsilon_that_no_noise_gives_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="above 0"):
        noise_for(0.0, 1, delta=1e-3, clients=10, asked=10)
