import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from florist.errors import ConfigurationError
from florist.linalg.spectrum import Spectrum
from florist.ranks import ByteBudget, Capped, EnergyThreshold, FixedRank, GlobalEnergyThreshold


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


@pytest.mark.parametrize("rule", [EnergyThreshold, GlobalEnergyThreshold])
@pytest.mark.parametrize("tau", [0.0, -0.1, 1.1, float("nan")])
def test_a_tau_outside_is_refused(rule: type, tau: float) -> None:
    with pytest.raises(ConfigurationError, match="expected 0 < tau <= 1"):
        rule(tau)


@given(values=values)
def test_discarded_and_kept_energy_add_up(values: list[float]) -> None:
    whole = spectrum(*values)
    for rank in range(len(values) + 1):
        kept = sum(value**2 for value in values[:rank])
        assert whole.discarded_energy(rank) + kept == pytest.approx(whole.total_energy)


shaped = st.builds(
    lambda values, shape: Spectrum(torch.tensor(values, dtype=torch.float64), 1e-12, shape),
    values,
    st.tuples(st.integers(30, 60), st.integers(30, 60)),
)
several = st.dictionaries(st.sampled_from("abcd"), shaped, min_size=1)


def energy(spectra: dict[str, Spectrum], ranks: dict[str, int]) -> float:
    return sum(float(spectra[name].S[:rank].square().sum()) for name, rank in ranks.items())


def parameters(spectra: dict[str, Spectrum], ranks: dict[str, int]) -> int:
    return sum(rank * sum(spectra[name].shape) for name, rank in ranks.items())


@given(spectra=several, tau=st.floats(0.01, 0.999))
def test_a_global_threshold_is_reached_and_no_direction_could_be_left_out(spectra, tau: float) -> None:
    ranks = dict(GlobalEnergyThreshold(tau)(spectra))
    total = sum(spectrum.total_energy for spectrum in spectra.values())
    assert energy(spectra, ranks) >= tau * total * (1 - 1e-12)
    # Greedy: what was left out holds no more energy per parameter than what was taken, and the last one was needed.
    last = {name: float(spectra[name].S[rank - 1]) ** 2 for name, rank in ranks.items() if rank}
    density = {name: value / sum(spectra[name].shape) for name, value in last.items()}
    for name, spectrum in spectra.items():
        if ranks[name] < len(spectrum.S):
            left_out = float(spectrum.S[ranks[name]]) ** 2 / sum(spectrum.shape)
            assert left_out <= min(density.values()) * (1 + 1e-12)
    weakest = min(density, key=lambda name: (density[name], name))
    assert energy(spectra, ranks) - last[weakest] < tau * total * (1 + 1e-12)


def test_of_one_shape_the_global_threshold_needs_no_more_parameters_than_the_one_per_module() -> None:
    spectra = {"strong": spectrum(10, 9, 8, 7), "weak": spectrum(0.1, 0.1, 0.1, 0.1)}
    apart, together = EnergyThreshold(0.9)(spectra), GlobalEnergyThreshold(0.9)(spectra)
    assert together["weak"] == 0 < apart["weak"]
    assert sum(together.values()) < sum(apart.values())


def test_a_direction_of_a_small_module_is_cheaper() -> None:
    small = Spectrum(torch.tensor([1.0], dtype=torch.float64), 1e-12, (4, 4))
    large = Spectrum(torch.tensor([1.5], dtype=torch.float64), 1e-12, (100, 100))
    assert GlobalEnergyThreshold(0.3)({"small": small, "large": large}) == {"small": 1, "large": 0}


@given(spectra=several, share=st.floats(0.0, 1.2))
def test_a_budget_is_kept_and_used_up(spectra, share: float) -> None:
    prices = {name: 4 * sum(spectrum.shape) for name, spectrum in spectra.items()}
    least = sum(prices.values())
    most = sum(prices[name] * len(spectrum.S) for name, spectrum in spectra.items())
    budget = int(least + share * (most - least))
    ranks = dict(ByteBudget(budget)(spectra))
    used = 4 * parameters(spectra, ranks)
    assert used <= budget
    unfinished = [name for name, spectrum in spectra.items() if ranks[name] < len(spectrum.S)]
    assert all(prices[name] > budget - used for name in unfinished)


def test_a_budget_below_rank_one_everywhere_says_what_would_do() -> None:
    with pytest.raises(ConfigurationError, match="each of the 1 modules, 360 bytes, got 359"):
        ByteBudget(359)({"m": spectrum(2, 1)})


def test_half_the_bytes_a_number_is_twice_the_rank() -> None:
    spectra = {"m": spectrum(*[1.0] * 8)}
    assert ByteBudget(4 * 360)(spectra) == {"m": 4}
    assert ByteBudget(4 * 360, itemsize=2)(spectra) == {"m": 8}


@given(spectra=several, rank=st.integers(1, 40))
def test_a_fixed_rank_and_a_cap(spectra, rank: int) -> None:
    fixed = FixedRank(rank)(spectra)
    assert fixed == {name: min(rank, spectrum.numerical_rank) for name, spectrum in spectra.items()}
    capped = Capped(EnergyThreshold(1.0), rank)(spectra)
    assert capped == fixed


@pytest.mark.parametrize("make", [FixedRank, lambda rank: Capped(EnergyThreshold(0.9), rank)])
def test_a_rank_below_one_is_refused(make) -> None:
    with pytest.raises(ConfigurationError, match="at least 1, got 0"):
        make(0)
