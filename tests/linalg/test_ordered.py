import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from florist.aggregation import lossless_sum
from florist.errors import InvalidAdapterError
from florist.factors import AdapterState, LoraFactor
from florist.linalg import ordered_spectrum
from tests.builders import adapter


@settings(max_examples=25)
@given(rank=st.integers(1, 30), seed=st.integers(0, 10**6), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_the_norms_of_the_components_are_the_singular_values(rank: int, seed: int, dtype: torch.dtype) -> None:
    for factor in lossless_sum([adapter(rank, seed, dtype=dtype)]).values():
        spectrum = ordered_spectrum(factor)
        expected = torch.linalg.svdvals(factor.delta_weight().double())[: factor.rank]
        torch.testing.assert_close(spectrum.S, expected, rtol=1e-5, atol=1e-5 * float(expected[0]))
        assert spectrum.numerical_rank == factor.rank
        assert spectrum.shape == factor.spec.shape


def test_a_large_spread_of_singular_values_is_read_off_as_well() -> None:
    U, V = (torch.linalg.qr(torch.randn(40, 7, generator=torch.Generator().manual_seed(k)))[0] for k in (0, 1))
    S = 10.0 ** -torch.arange(7)
    (factor,) = lossless_sum([AdapterState.of({"x": LoraFactor(U * S, V.T.contiguous())})]).values()
    torch.testing.assert_close(ordered_spectrum(factor).S[:5], S[:5].double(), rtol=1e-3, atol=0)


def test_norms_of_float32_components_are_taken_in_float64() -> None:
    # The energies of many modules are added up: what float32 rounds would show beside a small error.
    B, A = (torch.eye(60, 3) + 1e-4, torch.eye(3, 50) + 1e-4)
    exact = [float(b.norm() * a.norm()) for b, a in zip(B.double().T, A.double(), strict=True)]
    assert ordered_spectrum(LoraFactor(B, A)).S.tolist() == pytest.approx(exact, rel=1e-14)


def test_a_zero_update_has_no_rank() -> None:
    assert ordered_spectrum(LoraFactor(torch.zeros(4, 1), torch.zeros(1, 3))).numerical_rank == 0
    assert ordered_spectrum(LoraFactor(torch.zeros(4, 0), torch.zeros(0, 3))).numerical_rank == 0


@pytest.mark.parametrize("seed", range(5))
def test_components_in_another_order_or_not_orthogonal_are_refused(seed: int) -> None:
    raw = adapter(4, seed)
    (name, sound), *_ = lossless_sum([raw]).items()
    reversed_ = LoraFactor(sound.B.flip(1), sound.A.flip(0))
    one_half = LoraFactor(torch.linalg.qr(raw[name].B)[0], raw[name].A)
    for wrong in (raw[name], reversed_, one_half):
        with pytest.raises(InvalidAdapterError, match="orthogonal components and the largest first"):
            ordered_spectrum(wrong)
