"""Sums that are decomposed and cut to the ranks of a rule, module by module."""

from collections.abc import Callable, Iterator, Sequence

from florist.factors import LoraFactor
from florist.linalg import ThinSvd
from florist.linalg.parallel import in_order
from florist.linalg.spectrum import Spectrum
from florist.ranks import RankRule

Decompose = Callable[[str, float], ThinSvd]
"""(module, energy) -> the decomposition of its sum, as far as that fraction of its energy; see `linalg.decompose`."""

Cut = tuple[str, Spectrum, LoraFactor]
"""A module, the spectrum of its sum, and what the rule leaves of the sum."""


def cut_by_rule(rule: RankRule, modules: Sequence[str], decompose: Decompose) -> Iterator[Cut]:
    """Decompose each module and cut it to the rank that the rule chooses. Several modules are worked on at once.

    Cost: one decomposition a module; two where the rule looks at all modules before it names a rank.
    """
    return (_one_by_one if rule.per_module else _all_together)(rule, modules, decompose)


def _one_by_one(rule: RankRule, modules: Sequence[str], decompose: Decompose) -> Iterator[Cut]:
    def cut(name: str) -> Cut:
        svd = decompose(name, rule.required_energy)
        return name, svd.spectrum, svd.factor(rule({name: svd.spectrum})[name])

    return in_order(cut, modules)


def _all_together(rule: RankRule, modules: Sequence[str], decompose: Decompose) -> Iterator[Cut]:
    # The rule needs every spectrum before it names a rank. The singular vectors of all modules could take more
    # memory than all inputs until then; decomposing twice takes twice the time and the memory of one module.
    energy = rule.required_energy
    spectra = dict(zip(modules, in_order(lambda name: decompose(name, energy).spectrum, modules), strict=True))
    ranks = rule(spectra)

    def cut(name: str) -> Cut:
        return name, spectra[name], decompose(name, energy).factor(ranks[name])

    return in_order(cut, modules)
