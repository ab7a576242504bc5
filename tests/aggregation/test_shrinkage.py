"""Singular values behind noise of a known size: the published formula, the smallest loss, and what is certified."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from florist.aggregation import LinearRounds
from florist.errors import ConfigurationError
from florist.factors import AdapterState, LoraFactor
from florist.linalg.spectrum import Spectrum
from florist.ranks import Capped, EnergyThreshold, FixedRank, GlobalEnergyThreshold, NoiseEdge, OptimalShrinkage
from florist.rounds import ClientUpdate

R = 16


def spectrum_of(W: Tensor) -> Spectrum:
    return Spectrum(torch.linalg.svdvals(W), 1e-9, (W.shape[0], 999))


@given(st.integers(2, 600), st.integers(1, 64), st.floats(1e-3, 1e3), st.floats(1.001, 50))
def test_the_values_are_those_of_the_paper(m: int, r: int, deviation: float, edges: float) -> None:
    small, large = sorted((m, r))
    beta, scale = small / large, deviation * large**0.5  # the paper's noise has variance 1/n, and m <= n
    value = edges * deviation * (m**0.5 + r**0.5)
    y = value / scale
    expected = scale * ((y**2 - beta - 1) ** 2 - 4 * beta) ** 0.5 / y
    spectrum = Spectrum(torch.tensor([value], dtype=torch.float64), 1e-9, (m, 999))
    assert float(OptimalShrinkage(deviation, r)(spectrum, 1)) == pytest.approx(expected, rel=1e-6)


def test_below_the_edge_nothing_is_left_and_far_above_it_nothing_changes() -> None:
    shrink, edge = OptimalShrinkage(0.3, R), NoiseEdge(0.3, R).edge(400)
    S = torch.tensor([1e5 * edge, 2 * edge, 1.0001 * edge, 0.999 * edge, 0.5 * edge, 1e-9, 0.0]).double()
    found = shrink(Spectrum(S, 1e-12, (400, 999)), 7)
    assert found[3:].tolist() == [0.0] * 4
    assert float(found[0] / S[0]) == pytest.approx(1, abs=1e-9)
    assert bool((found <= S).all())
    assert 0 < float(found[2]) < 0.1 * edge
    assert torch.equal(OptimalShrinkage(0.0, R)(Spectrum(S, 1e-12, (400, 999)), 2), S[:2])


@pytest.mark.parametrize(("m", "r"), [(576, 16), (192, 64), (400, 400)])
@pytest.mark.parametrize("strength", [1.2, 2.0, 5.0], ids="{}".format)
def test_the_loss_is_near_that_of_who_knows_the_signal_and_below_that_of_a_cut(m: int, r: int, strength: float) -> None:
    """Spiked matrices: three directions whose values in the product are near the edge, or far above it."""
    deviation, draw = 0.3, torch.Generator().manual_seed(m + r)
    shrink, edge = OptimalShrinkage(deviation, r), NoiseEdge(deviation, r)
    losses: list[list[float]] = []
    for _ in range(8):
        U, V = (torch.linalg.qr(torch.randn(n, 3, generator=draw, dtype=torch.float64))[0] for n in (m, r))
        # A spike is seen where it is above deviation (m r)^(1/4).
        values = strength * deviation * (m * r) ** 0.25 * torch.tensor([1.5, 1.25, 1.0]).double()
        X = U @ torch.diag(values) @ V.T
        Y = X + deviation * torch.randn(m, r, generator=draw, dtype=torch.float64)
        u, s, vh = torch.linalg.svd(Y, full_matrices=False)
        spectrum = Spectrum(s, 1e-9, (m, 999))
        kept = edge({"layer": spectrum})["layer"]

        def loss(values: Tensor, u: Tensor = u, vh: Tensor = vh, X: Tensor = X) -> float:
            p = values.numel()
            return float((u[:, :p] * values @ vh[:p] - X).square().sum())

        # Who knows the signal gives each direction of Y the value that fits best, and none a negative one.
        oracle = torch.einsum("mk,mr,kr->k", u, X, vh).clamp(min=0)[:kept]
        losses.append([loss(shrink(spectrum, kept)), loss(s[:kept]), loss(oracle)])
    shrunk, cut, best = (sum(each) / len(losses) for each in zip(*losses, strict=True))
    assert best <= shrunk <= 1.06 * best
    assert shrunk < cut
    if strength == 1.2:
        assert cut > 1.3 * shrunk


# --- as a part of linear rounds


def updates(spread: float = 1.0) -> tuple[Sequence[ClientUpdate], Tensor]:
    """One client's update along orthonormal rows, and its product."""
    draw = torch.Generator().manual_seed(4)
    A = torch.linalg.qr(torch.randn(60, R, generator=draw, dtype=torch.float64))[0].T
    B = torch.randn(120, R, generator=draw, dtype=torch.float64)
    B += spread * 40 * torch.outer(torch.ones(120).double() / 120**0.5, torch.eye(R)[0].double())
    return [ClientUpdate("a", AdapterState.of({"q": LoraFactor(B, A), "v": LoraFactor(B[:50], A)}), 10, 1)], B @ A


@pytest.mark.parametrize(
    "rule",
    [NoiseEdge(1.0, R), Capped(NoiseEdge(1.0, R), 1), FixedRank(3), EnergyThreshold(1.0), GlobalEnergyThreshold(0.9)],
    ids=str,
)
def test_kept_directions_are_sent_with_smaller_values_and_the_error_says_by_how_much(rule: object) -> None:
    given, product = updates()
    shrink = OptimalShrinkage(1.0, R)
    plain = LinearRounds(rule)(given)  # type: ignore[arg-type]
    shrunk = LinearRounds(rule, shrink)(given)  # type: ignore[arg-type]
    for name, W in (("q", product), ("v", product[:50])):
        rank = plain.certificate.modules[name].rank
        assert shrunk.certificate.modules[name].rank == rank  # how many is the rule's choice alone
        u, s, vh = torch.linalg.svd(W, full_matrices=False)
        expected = u[:, :rank] * shrink(Spectrum(s, 1e-9, (W.shape[0], 60)), rank) @ vh[:rank]
        found = shrunk.shared[name].delta_weight().double()
        assert float((found - expected).norm()) < 1e-5 * float(expected.norm())
        module = shrunk.certificate.modules[name]
        assert module.error == pytest.approx(float((W - expected).norm()), rel=1e-3)
        assert module.norm == pytest.approx(float(W.norm()), rel=1e-5)
        assert module.error > plain.certificate.modules[name].error


def test_what_is_no_noise_is_refused() -> None:
    for deviation in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigurationError, match="standard deviation"):
            OptimalShrinkage(deviation, 4)
    with pytest.raises(ConfigurationError, match="rank"):
        OptimalShrinkage(1.0, 0)
