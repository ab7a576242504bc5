"""Sums that are decomposed and cut to the ranks of a rule, module by module."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from florist.factors import LoraFactor
from florist.linalg import ThinSvd, WeightedFactor, cut_norms
from florist.linalg.parallel import in_order
from florist.ranks import RankRule

Decompose = Callable[[str, float], ThinSvd]
"""(module, energy) -> the decomposition of its sum, as far as that fraction of its energy; see `linalg.decompose`."""

Exact = Callable[[str], Sequence[WeightedFactor]]
"""(module) -> the parts of its exact sum."""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """What a rule leaves of the sum of one module.

    Attributes:
        module: the name of the module.
        factor: the directions that are kept.
        norm: the Frobenius norm of the exact sum.
        error: the Frobenius norm of the exact sum less the product of `factor`; see `linalg.residual.cut_norms`.
    """

    module: str
    factor: LoraFactor
    norm: float
    error: float


def cut_by_rule(rule: RankRule, modules: Sequence[str], decompose: Decompose, exact: Exact) -> Iterator[Cut]:
    """Decompose each module and cut it to the rank that the rule chooses. Several modules are worked on at once.

    Cost: one decomposition a module; two where the rule looks at all modules before it names a rank. Where so little is
    left out that rounding may exceed it, the parts are read again for `linalg.residual.residual_norm`.
    """
    return (_one_by_one if rule.per_module else _all_together)(rule, modules, decompose, exact)


def _one_by_one(rule: RankRule, modules: Sequence[str], decompose: Decompose, exact: Exact) -> Iterator[Cut]:
    def cut(name: str) -> Cut:
        svd = decompose(name, rule.required_energy)
        spectrum, factor = svd.spectrum, svd.factor(rule({name: svd.spectrum})[name])
        del svd  # and with it the stack, before the parts are stacked again
        return Cut(name, factor, *cut_norms(partial(exact, name), spectrum, factor))

    return in_order(cut, modules)


def _all_together(rule: RankRule, modules: Sequence[str], decompose: Decompose, exact: Exact) -> Iterator[Cut]:
    # The rule needs every spectrum before it names a rank. The singular vectors of all modules could take more
    # memory than all inputs until then; decomposing twice takes twice the time and the memory of one module.
    energy = rule.required_energy
    spectra = dict(zip(modules, in_order(lambda name: decompose(name, energy).spectrum, modules), strict=True))
    ranks = rule(spectra)

    def cut(name: str) -> Cut:
        factor = decompose(name, energy).factor(ranks[name])
        return Cut(name, factor, *cut_norms(partial(exact, name), spectra[name], factor))

    return in_order(cut, modules)
