"""Shares of noise: how many of them count, what rounding before the sum does to them, and that nothing wraps."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float64

from florist.errors import ConfigurationError
from florist.privacy.clipping import BELOW, Change
from florist.privacy.fixed_point import FixedPoint
from florist.privacy.layout import Layout
from florist.privacy.noise_share import FEWEST_STEPS, NoiseShare, honest_in_the_sum, in_secret

ROWS = {"q": 5, "v": 3}


@given(st.integers(2, 40), st.floats(0.01, 1), st.data())
def test_so_many_honest_clients_are_in_any_sum_whoever_is_lost(
    asked: int, fraction: float, data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(asked // 2 + 1, asked))
    honest = min(k for k in range(asked + 1) if k >= fraction * asked - 1e-9)
    # The worst case: all of the others stay, and as many honest clients are lost as may be.
    worst = max(0, honest - (asked - threshold))
    if worst == 0:
        with pytest.raises(ConfigurationError, match=r"raise privacy\.threshold, or privacy\.honest_fraction"):
            honest_in_the_sum(asked, threshold, fraction)
    else:
        assert honest_in_the_sum(asked, threshold, fraction) == worst


def test_a_fraction_that_is_not_exact_in_binary_counts_no_client_more() -> None:
    assert honest_in_the_sum(30, 30, 0.1) == 3


# --- rounding before the sum


def rounded_apart(parts: list[float], deviation: float, values: Float64[np.ndarray, " v"]) -> Float64[np.ndarray, " v"]:
    """The probabilities of the sum of numbers that each get Gaussian noise and are rounded then, by convolution."""
    width = len(values) // 2
    total = np.ones(1)
    for part in parts:
        inner = np.arange(-width, width + 1) - part
        normal = NormalDist(0, deviation)
        total = np.convolve(total, [normal.cdf(x + 0.5) - normal.cdf(x - 0.5) for x in inner])
    middle = len(total) // 2
    return total[middle - width : middle + width + 1]


def rounded_once(parts: list[float], deviation: float, values: Float64[np.ndarray, " v"]) -> Float64[np.ndarray, " v"]:
    """Those of the exact sum with the noise of all, plus a uniform number for each part but one, rounded once.

    The density of three uniform numbers is a spline; over each of its pieces the integral is by Gauss and Legendre.
    """
    assert len(parts) == 3
    nodes, weights = np.polynomial.legendre.leggauss(40)
    whole = deviation * 3**0.5
    found = np.zeros(len(values))
    for centre in (-1.0, 0.0, 1.0):
        for at, weight in zip(centre + nodes / 2, weights / 2, strict=True):
            spline = 0.75 - at**2 if abs(at) <= 0.5 else (1.5 - abs(at)) ** 2 / 2
            found += weight * spline * np.exp(-0.5 * ((values - sum(parts) - at) / whole) ** 2)
    return found / (whole * math.sqrt(2 * math.pi))


@pytest.mark.parametrize("parts", [[0.5, 0.5, 0.0], [0.3, -2.1, 0.9], [0.0, 0.0, 0.0]], ids=str)
@pytest.mark.parametrize("deviation", [0.3, 0.6, 0.9, 1.2, 2.0])
def test_the_sum_of_rounded_numbers_is_what_comes_of_the_exact_noisy_sum_by_rounding_once(
    parts: list[float], deviation: float
) -> None:
    values = np.arange(-60.0, 61.0)
    apart, once = rounded_apart(parts, deviation, values), rounded_once(parts, deviation, values)
    assert float(apart.sum()) == pytest.approx(1, abs=1e-12)
    assert float(once.sum()) == pytest.approx(1, abs=1e-12)
    distance = float(np.abs(apart - once).sum()) / 2
    assert distance <= 4 * math.exp(-((math.pi * deviation) ** 2)) + 1e-13
    if deviation == 0.3 and parts != [0.0, 0.0, 0.0]:
        assert distance > 0.01  # of so little noise it is not: what is refused would not be private as accounted
    assert 1e9 * math.exp(-((math.pi * FEWEST_STEPS) ** 2)) < 1e-50


def test_noise_of_fewer_steps_is_refused() -> None:
    share = NoiseShare(0.1, None, ROWS, 2)
    levels = FEWEST_STEPS * share.size(1.0) / 0.1
    enough = FixedPoint(1 + math.ceil(math.log2(10 * 2 * levels)), 10)
    share.require_fine(enough, 1.0)
    with pytest.raises(ConfigurationError, match=r"privacy\.bits = \d+: expected more, since the noise of a client is"):
        share.require_fine(FixedPoint(enough.bits - 2, 10), 1.0)
    with pytest.raises(ConfigurationError, match=r"privacy\.bits"):
        NoiseShare(0.1, 1e-9, ROWS, 2).require_fine(enough, 1.0)


# --- the share


def test_noise_is_in_each_number_that_any_client_might_have_changed() -> None:
    share = NoiseShare.of(8.0, 6.0, 4, {"q": 400, "v": 300}, 3)
    change = Change({"q": torch.full((400, 1), 5.0)}, {"head": torch.full((2000,), -3.0), BELOW: torch.tensor([0.5])})
    noised = share.added(change, in_secret)
    assert {name: tuple(B.shape) for name, B in noised.B.items()} == {"q": (400, 3), "v": (300, 3)}
    middle = {"q": torch.tensor([5.0, 0.0, 0.0]), "v": torch.zeros(3)}
    off = torch.cat([(B - middle[name]).reshape(-1) for name, B in noised.B.items()])
    assert float(off.square().mean().sqrt()) == pytest.approx(4.0, rel=0.09)
    assert float((noised.saved_parameters["head"] + 3).square().mean().sqrt()) == pytest.approx(4.0, rel=0.1)
    bits = torch.cat([share.added(change, in_secret).saved_parameters[BELOW] for _ in range(300)])
    assert float(bits.mean()) == pytest.approx(0.5, abs=0.9)
    assert float(bits.std()) == pytest.approx(3.0, rel=0.25)
    purposes: list[str] = []
    share.added(change, lambda of: purposes.append(of) or torch.Generator().manual_seed(0))
    assert len(purposes) == len(set(purposes)) == 2


@pytest.mark.slow
@given(
    clients=st.integers(2, 60),
    bits=st.integers(16, 64),
    multiplier=st.floats(0.05, 30),
    seed=st.integers(0, 2**32),
    outliers=st.floats(0, 1e6),
)
@settings(max_examples=80)
def test_noise_of_any_size_is_cut_and_never_wraps(
    clients: int, bits: int, multiplier: float, seed: int, outliers: float
) -> None:
    clip, draw = 0.7, torch.Generator().manual_seed(seed)
    share = NoiseShare.of(multiplier * clip, multiplier, max(1, clients // 2), ROWS, 2)
    size, numbers = share.size(clip), FixedPoint(bits, clients)
    bounds = {"q": size, "v": size, BELOW: share.bit_size}
    layout = Layout(numbers, ROWS, {BELOW: (1,)}, frozenset({2}), bounds, 1)
    total = np.zeros(layout.words(2), dtype=np.uint64)
    expected = {name: torch.zeros(rows, 2, dtype=torch.float64) for name, rows in ROWS.items()}
    told = torch.zeros(1, dtype=torch.float64)
    for _ in range(clients):
        change = Change({"q": clip * torch.ones(5, 1)}, {BELOW: torch.tensor([0.5])})
        noised = share.added(change, lambda _: draw)
        # As if numbers far out in the tail had come.
        far = Change({name: B + outliers * B.sign() for name, B in noised.B.items()}, noised.saved_parameters)
        total = total + layout.encoded(far.B, far.saved_parameters, 1, 2)
        for name, B in far.B.items():
            expected[name] += torch.from_numpy(numbers.rounded((B / size).numpy().reshape(-1)).reshape(-1, 2)) * size
        bit = far.saved_parameters[BELOW] / share.bit_size
        told += torch.from_numpy(numbers.rounded(bit.numpy())) * share.bit_size
    found = layout.decoded(total, {str(k): 2 for k in range(clients)})
    assert found.weight == clients
    scale = clients * (size + share.bit_size)
    for name, B in expected.items():
        assert float((found.B[name] - B).abs().max()) <= 1e-12 * scale
        assert float(found.B[name].abs().max()) <= clients * size * (1 + 1e-12)
    assert float((found.saved_parameters[BELOW] - told).abs().max()) <= 1e-12 * scale
