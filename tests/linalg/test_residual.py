"""What a factor lacks of a sum, against the dense residual."""

import pytest
import torch

from florist.factors import LoraFactor
from florist.linalg import WeightedFactor, cut_norms, decompose, residual_norm
from florist.linalg.spectrum import Spectrum
from tests.linalg.matrices import as_part, dense, gaussian, with_spectrum


@pytest.mark.parametrize("rank", [2, 5, 40])
def test_the_residual_is_that_of_the_dense_sums(rank: int) -> None:
    parts = [as_part(gaussian(20, 16, rank, seed=seed, dtype=torch.float32), 0.5) for seed in range(2)]
    sent = gaussian(20, 16, 3, seed=9, dtype=torch.float32)
    expected = torch.linalg.norm(dense(*parts) - sent.to(dtype=torch.float64).delta_weight())
    assert residual_norm(parts, sent) == pytest.approx(float(expected), rel=1e-12)


def test_a_residual_far_below_the_sum_is_found() -> None:
    small = gaussian(20, 16, 1, seed=1).scaled(1e-13)
    large = gaussian(20, 16, 2)
    found = residual_norm([as_part(large), as_part(small)], large)
    assert found == pytest.approx(small.energy() ** 0.5, rel=1e-2)


def test_parts_without_weight_or_rank_are_not_read() -> None:
    factor = gaussian(6, 5, 2)

    def refuse() -> LoraFactor:
        raise AssertionError("read")

    nothing = [WeightedFactor(0.0, factor.spec, refuse), WeightedFactor(1.0, factor.leading(0).spec, refuse)]
    assert residual_norm(nothing, factor.leading(0)) == 0
    assert residual_norm(nothing, factor) == pytest.approx(factor.energy() ** 0.5)


def test_parts_are_read_again_only_where_the_spectrum_does_not_know() -> None:
    factor = with_spectrum(torch.tensor([4.0, 3.0, 1e-9]), 12, 10)
    parts = [as_part(factor)]

    def refuse() -> list[WeightedFactor]:
        raise AssertionError("read")

    svd = decompose(parts, energy=0.5)
    assert cut_norms(refuse, svd.spectrum, svd.factor(1)) == pytest.approx((5, 3))
    assert cut_norms(lambda: parts, svd.spectrum.leading(1), svd.factor(1)) == pytest.approx((5, 3))
    svd = decompose(parts, energy=0.99)
    with pytest.raises(AssertionError, match="read"):
        cut_norms(refuse, svd.spectrum, svd.factor(2))
    assert cut_norms(lambda: parts, svd.spectrum, svd.factor(2)) == pytest.approx((5, 1e-9), rel=1e-3)


def test_what_a_spectrum_knows_it_knows_after_a_cut() -> None:
    spectrum = Spectrum(torch.tensor([3.0, 2.0]).double(), 1e-6, (4, 4), known_from=0.5)
    assert spectrum.leading(1).known_from == spectrum.trailing(1).known_from == 0.5


@pytest.mark.parametrize("energy", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("small", [1e-4, 1e-6, 1e-8, 1e-10])
@pytest.mark.parametrize("rank", [5, 9], ids=["stacked", "dense"])
def test_what_other_terms_hide_is_no_zero(rank: int, small: float, energy: float) -> None:
    for seed in range(5):
        large, own = (gaussian(20, 16, rank, seed=2 * seed + k, dtype=torch.float32) for k in range(2))
        parts = [as_part(large, 0.25), as_part(large.scaled(-1.0), 0.25), as_part(own, 0.25 * small)]
        svd = decompose(parts, energy=energy)
        expected = 0.25 * small * float(own.energy()) ** 0.5
        assert svd.spectrum.total_energy**0.5 == pytest.approx(expected, rel=1e-3)
        kept = svd.factor(svd.spectrum.rank_holding(energy))
        assert kept.rank >= 1
        norm, error = cut_norms(lambda parts=parts: parts, svd.spectrum, kept)
        missing = dense(*parts) - kept.to(dtype=torch.float64).delta_weight()
        assert error == pytest.approx(float(torch.linalg.norm(missing)), rel=1e-3, abs=1e-15)
        assert error <= norm * (1 - energy) ** 0.5 * 1.001 + 1e-5 * norm
