"""What a client can do to a sum is bounded, whatever it sends, and the noise has the variance that is accounted."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from florist.errors import ConfigurationError
from florist.linalg.spectrum import Spectrum
from florist.privacy.clipping import AdaptiveClip, Change, noisy
from florist.ranks import NoiseEdge


def change(scale: float, seed: int = 0, dtype: torch.dtype = torch.float32) -> Change:
    torch.manual_seed(seed)
    return Change(
        {"q": scale * torch.randn(7, 3, dtype=dtype), "v": scale * torch.randn(5, 2, dtype=dtype)},
        {"head": scale * torch.randn(2, 4, dtype=dtype)},
    )


@given(st.floats(1e-6, 1e18), st.floats(1e-3, 1e3), st.integers(0, 99), st.sampled_from([torch.float32, torch.float64]))
def test_no_clipped_change_is_larger_than_the_clip(scale: float, clip: float, seed: int, dtype: torch.dtype) -> None:
    before = change(scale, seed, dtype)
    after = before.clipped(clip)
    assert after.norm <= clip
    if before.norm <= clip:
        assert after is before
    elif before.norm < 1e15:
        assert after.norm > 0.999 * clip
        assert torch.allclose(after.B["q"] / after.norm, before.B["q"] / before.norm, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_adversaries_cannot_get_above_it(bad: float) -> None:
    spoilt = Change({"q": torch.tensor([[bad, 1.0]], dtype=torch.float64)}, {"head": torch.tensor([1.0])})
    after = spoilt.clipped(2.0)
    assert after.norm <= 2.0
    assert all(tensor.isfinite().all() for tensor in (*after.B.values(), *after.saved_parameters.values()))


def test_the_norm_is_that_of_all_modules_and_heads_together() -> None:
    found = change(3.0, dtype=torch.float64)
    flat = torch.cat([t.reshape(-1) for t in (*found.B.values(), *found.saved_parameters.values())])
    assert found.norm == pytest.approx(float(flat.norm()))


def test_neighbours_differ_by_at_most_the_clip() -> None:
    clients = [change(10.0**k, k).clipped(1.5) for k in range(-3, 4)]
    total = sum(c.B["q"].double() for c in clients)
    for left_out in clients:
        rest = sum(c.B["q"].double() for c in clients if c is not left_out)
        assert float((total - rest).norm()) <= 1.5


def test_the_noise_has_the_deviation_that_is_asked_for() -> None:
    total = Change({"q": torch.ones(200, 100), "v": torch.zeros(50, 20)}, {"head": torch.zeros(300)})
    after = noisy(total, 0.7, torch.Generator().manual_seed(3))
    for noise in (after.B["q"] - 1, after.B["v"], after.saved_parameters["head"]):
        count = noise.numel()
        # The variance of count Gaussian numbers: standard deviation sqrt(2 / count), five of them either way.
        assert abs(float(noise.square().mean()) / 0.49 - 1) < 5 * (2 / count) ** 0.5
        assert abs(float(noise.mean())) < 5 * 0.7 / count**0.5


@given(st.floats(0.05, 20), st.integers(0, 9))
def test_the_adaptive_clip_comes_to_the_quantile(start: float, seed: int) -> None:
    rule = AdaptiveClip(quantile=0.5, rate=0.2)
    torch.manual_seed(seed)
    norms, clip = torch.rand(100) + 0.5, start
    for _ in range(80):
        clip = rule.next_clip(clip, float((norms <= clip).sum()), 100)
    assert 0.8 < clip < 1.2


def test_the_count_takes_its_share_of_the_noise() -> None:
    rule = AdaptiveClip(count_noise=5.0)
    z = rule.noise_for_both(1.0)
    assert z**-2 + (2 * 5.0) ** -2 == pytest.approx(1.0)
    with pytest.raises(ConfigurationError, match="the count alone"):
        AdaptiveClip(count_noise=0.5).noise_for_both(1.0)
    for wrong in ({"quantile": 1.0}, {"rate": 0.0}, {"count_noise": 0.0}):
        with pytest.raises(ConfigurationError, match="expected a quantile"):
            AdaptiveClip(**wrong)


@pytest.mark.parametrize(("m", "r"), [(576, 16), (192, 8), (64, 64)])
def test_pure_noise_keeps_nothing_and_a_signal_above_it_is_kept(m: int, r: int) -> None:
    rule = NoiseEdge(deviation=0.3, rank=r, multiple=1.1)
    torch.manual_seed(1)
    noise = 0.3 * torch.randn(m, r, dtype=torch.float64)
    signal = torch.outer(torch.nn.functional.normalize(torch.randn(m), dim=0), torch.nn.functional.normalize(
        torch.randn(r), dim=0)).double() * 3 * rule.edge(m)  # fmt: skip
    spectra = {
        name: Spectrum(torch.linalg.svdvals(W), 1e-9, (m, 999))
        for name, W in (("noise", noise), ("both", noise + signal))
    }
    assert rule(spectra) == {"noise": 0, "both": 1}
    assert rule.required_energy == 1
    assert rule.per_module


def test_noise_edge_refuses_what_is_no_noise() -> None:
    with pytest.raises(ConfigurationError, match="standard deviation"):
        NoiseEdge(-1.0, 4)
    with pytest.raises(ConfigurationError, match="rank"):
        NoiseEdge(1.0, 0)
