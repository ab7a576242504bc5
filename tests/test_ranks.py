import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from florist.errors import ConfigurationError
from florist.ranks import EnergyThreshold, Spectrum


def spectrum(*values: float, tail: float = 0.0) -> Spectrum:
    return Spectrum(torch.tensor(values, dtype=torch.float64), 1e-12, (50, 40), tail)


values = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30).map(lambda v: sorted(v, reverse=True))


@given(values=values, tau=st.floats(0.01, 1.0))
def test_the_threshold_keeps_the_smallest_rank_that_holds_tau(values: list[float], tau: float) -> None:
    found = EnergyThreshold(tau)({"m": spectrum(*values)})["m"]
    energies = [value**2 for value in values]
    total = sum(energies)
    slack = 1e-12 * total
    assert sum(energies[:found]) >= tau * total - slack
    assert found == 1 or sum(energies[: found - 1]) < tau * total + slack


def test_energy_is_squared() -> None:
    # 3 of 3 + 2 + 2 is 0.43 of the sum, 9 of 17 is 0.53 of the energy.
    assert EnergyThreshold(0.5)({"m": spectrum(3, 2, 2)}) == {"m": 1}


def test_tau_one_keeps_the_numerical_rank() -> None:
    noisy = Spectrum(torch.tensor([2.0, 1.0, 1e-8], dtype=torch.float64), 1e-6, (5, 5))
    assert EnergyThreshold(1.0)({"m": noisy}) == {"m": 2}


@given(values=values, scale=st.floats(1e-6, 1e6))
def test_tau_one_is_reached_whatever_the_rounding(values: list[float], scale: float) -> None:
    scaled = spectrum(*(value * scale for value in values))
    assert EnergyThreshold(1.0)({"m": scaled})["m"] == scaled.numerical_rank


def test_a_zero_update_keeps_nothing() -> None:
    zero = spectrum(0, 0)
    assert EnergyThreshold(0.9)({"m": zero}) == {"m": 0}
    assert EnergyThreshold(1.0)({"m": zero}) == {"m": 0}
    assert zero.kept_energy(0) == 1.0


def test_energy_refers_to_the_whole_update_where_the_spectrum_is_cut() -> None:
    # Measured on what is left of the spectrum, one value would hold 0.8.
    cut = spectrum(2, 1, tail=3.0)
    assert cut.total_energy == 8.0
    assert cut.kept_energy(1) == 0.5
    assert EnergyThreshold(0.6)({"m": cut}) == {"m": 2}


@pytest.mark.parametrize("tau", [0.0, -0.1, 1.1, float("nan")])
def test_a_tau_outside_is_refused(tau: float) -> None:
    with pytest.raises(ConfigurationError, match="expected 0 < tau <= 1"):
        EnergyThreshold(tau)


@given(values=values)
def test_discarded_and_kept_energy_add_up(values: list[float]) -> None:
    whole = spectrum(*values)
    for rank in range(len(values) + 1):
        kept = sum(value**2 for value in values[:rank])
        assert whole.discarded_energy(rank) + kept == pytest.approx(whole.total_energy)
