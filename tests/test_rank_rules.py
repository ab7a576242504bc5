"""What every rank rule promises, to the solvers and to the aggregators that ask it."""

import pytest
import torch

from florist.linalg.spectrum import Spectrum
from florist.ranks import ByteBudget, Capped, EnergyThreshold, FixedRank, GlobalEnergyThreshold, RankRule

RULES = [
    EnergyThreshold(0.9),
    EnergyThreshold(1.0),
    FixedRank(3),
    GlobalEnergyThreshold(0.9),
    GlobalEnergyThreshold(1.0),
    ByteBudget(9 * 90 * 4),
    Capped(EnergyThreshold(0.9), 2),
    Capped(GlobalEnergyThreshold(0.9), 2),
    Capped(ByteBudget(9 * 90 * 4), 2),
]


def decaying(rate: float, scale: float) -> Spectrum:
    values = scale * torch.exp(-rate * torch.arange(20, dtype=torch.float64))
    return Spectrum(values, 1e-12, (50, 40))


SPECTRA = {"a": decaying(0.1, 1.0), "b": decaying(0.5, 2.0), "c": decaying(1.0, 0.1), "zero": decaying(1.0, 0.0)}


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_rank_lies_between_nothing_and_the_numerical_rank(rule: RankRule) -> None:
    ranks = rule(SPECTRA)
    assert ranks.keys() == SPECTRA.keys()
    assert all(0 <= rank <= SPECTRA[name].numerical_rank for name, rank in ranks.items())


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_what_a_rule_does_not_require_it_does_not_look_at(rule: RankRule) -> None:
    seen = {name: each.leading(each.rank_holding(rule.required_energy)) for name, each in SPECTRA.items()}
    assert rule(seen) == rule(SPECTRA)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.per_module], ids=str)
def test_a_rule_for_each_module_gives_the_same_rank_to_a_module_alone(rule: RankRule) -> None:
    assert {name: rule({name: spectrum})[name] for name, spectrum in SPECTRA.items()} == rule(SPECTRA)


@pytest.mark.parametrize("rule", [GlobalEnergyThreshold(0.9), ByteBudget(9 * 90 * 4)], ids=str)
def test_a_rule_that_shares_between_modules_says_so(rule: RankRule) -> None:
    assert not rule.per_module
    assert {name: rule({name: spectrum})[name] for name, spectrum in SPECTRA.items()} != rule(SPECTRA)
