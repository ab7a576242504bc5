from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from florist.compression.codecs import CODECS
from florist.compression.packed import PackedAdapter
from florist.errors import ConfigurationError
from florist.factors import AdapterState, LoraFactor
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


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("nbytes", [600, 1000, 1800])
def test_a_budget_counts_what_a_codec_packs_with_its_scales(name: str, nbytes: int) -> None:
    codec, shapes = CODECS[name], {"a": (50, 40), "b": (31, 7), "c": (8, 9)}
    rule = ByteBudget(nbytes, codec.itemsize, 2 * codec.row_overhead)
    spectra = {
        module: Spectrum(torch.ones(6, dtype=torch.float64), 1e-12, shape, 0.0) for module, shape in shapes.items()
    }
    ranks = rule(spectra)

    def packed(ranks: Mapping[str, int]) -> int:
        return PackedAdapter.of(AdapterState.of({m: ones(*shapes[m], r) for m, r in ranks.items()}), codec).nbytes

    assert packed(ranks) <= nbytes
    grown = [{**ranks, module: rank + 1} for module, rank in ranks.items() if rank < 6]
    # The codes of several directions are packed without a gap: a budget may be off by the rest of a byte for each.
    assert all(packed(more) > nbytes - 2 * sum(more.values()) for more in grown)


def ones(m: int, n: int, rank: int) -> LoraFactor:
    return LoraFactor(torch.ones(m, rank), torch.ones(rank, n))


@given(spectra=several, rank=st.integers(1, 40))
def test_a_fixed_rank_and_a_cap(spectra, rank: int) -> None:
    fixed = FixedRank(rank)(spectra)
    assert fixed == {name: min(rank, spectrum.numerical_rank) for name, spectrum in spectra.items()}
    capped = Capped(EnergyThreshold(1.0), rank)(spectra)
    assert capped == fixed


def of_shape(side: int, *values: float) -> Spectrum:
    return Spectrum(torch.tensor(values, dtype=torch.float64), 1e-12, (side, side))


def test_a_budget_spends_on_other_modules_what_a_cap_frees() -> None:
    # Twelve directions fit. Without the cap they are all those of "a" but one, which "b" has in any case.
    spectra = {"a": of_shape(4, *[10.0] * 12), "b": of_shape(4, *[1.0] * 12)}
    budget = ByteBudget(12 * 8 * 4)
    assert budget(spectra) == {"a": 11, "b": 1}
    assert Capped(budget, 8)(spectra) == {"a": 8, "b": 4}


def test_a_global_threshold_looks_elsewhere_for_the_energy_that_a_cap_leaves_out() -> None:
    # The energies are 4, 4, 4 and 1, 1, 1 of 15. Two thirds are three directions of "a", or two and two of "b".
    spectra = {"a": of_shape(4, 2.0, 2.0, 2.0), "b": of_shape(4, 1.0, 1.0, 1.0)}
    assert GlobalEnergyThreshold(10 / 15)(spectra) == {"a": 3, "b": 0}
    assert Capped(GlobalEnergyThreshold(10 / 15), 2)(spectra) == {"a": 2, "b": 2}
    # The energy refers to the whole update: what is within the cap is all that there is to take.
    assert Capped(GlobalEnergyThreshold(0.99), 2)(spectra) == {"a": 2, "b": 2}
    assert Capped(GlobalEnergyThreshold(1.0), 2)(spectra) == {"a": 2, "b": 2}


RULES = {
    "threshold": lambda share: EnergyThreshold(max(share, 0.01)),
    "global threshold": lambda share: GlobalEnergyThreshold(max(share, 0.01)),
    "fixed rank": lambda share: FixedRank(1 + int(29 * share)),
    "budget": lambda share: ByteBudget(2000 + int(30_000 * share)),
}
every_rule = pytest.mark.parametrize("make", RULES.values(), ids=RULES)
shares = st.floats(0.0, 1.0)


@every_rule
@given(spectra=several, share=shares, cap=st.integers(1, 35))
def test_no_module_is_above_a_cap_and_what_it_does_not_bind_is_unchanged(make, spectra, share: float, cap: int) -> None:
    rule = make(share)
    free, capped = rule(spectra), Capped(rule, cap)(spectra)
    assert capped.keys() == spectra.keys()
    assert all(0 <= rank <= min(cap, spectra[name].numerical_rank) for name, rank in capped.items())
    if max(free.values()) <= cap:
        assert capped == free


@pytest.mark.parametrize("make", [RULES["threshold"], RULES["fixed rank"]], ids=["threshold", "fixed rank"])
@given(spectra=several, share=shares, cap=st.integers(1, 35))
def test_where_modules_share_nothing_a_cap_cuts_each_alone(make, spectra, share: float, cap: int) -> None:
    rule = make(share)
    assert Capped(rule, cap)(spectra) == {name: min(rank, cap) for name, rank in rule(spectra).items()}


@given(spectra=several, share=shares, cap=st.integers(1, 35))
def test_a_budget_under_a_cap_is_kept_and_used_up(spectra, share: float, cap: int) -> None:
    prices = {name: 4 * sum(spectrum.shape) for name, spectrum in spectra.items()}
    least = sum(prices.values())
    budget = int(least + share * sum(29 * price for price in prices.values()))
    ranks = Capped(ByteBudget(budget), cap)(spectra)
    left = budget - 4 * parameters(spectra, dict(ranks))
    assert left >= 0
    unfinished = [name for name, spectrum in spectra.items() if ranks[name] < min(cap, spectrum.numerical_rank)]
    assert all(prices[name] > left for name in unfinished)


@given(spectra=several, share=shares, cap=st.integers(1, 35))
def test_a_global_threshold_under_a_cap_is_reached_where_it_can_be(spectra, share: float, cap: int) -> None:
    tau = max(share, 0.01)
    ranks = dict(Capped(GlobalEnergyThreshold(tau), cap)(spectra))
    wanted = tau * sum(spectrum.total_energy for spectrum in spectra.values())
    reachable = {name: min(cap, spectrum.numerical_rank) for name, spectrum in spectra.items()}
    assert energy(spectra, ranks) >= min(wanted, energy(spectra, reachable)) * (1 - 1e-12)
    # What the cap takes from one module is only ever given to others.
    free = GlobalEnergyThreshold(tau)(spectra)
    assert all(ranks[name] >= min(rank, cap) for name, rank in free.items())


@pytest.mark.parametrize("make", [FixedRank, lambda rank: Capped(EnergyThreshold(0.9), rank)])
def test_a_rank_below_one_is_refused(make) -> None:
    with pytest.raises(ConfigurationError, match="at least 1, got 0"):
        make(0)
