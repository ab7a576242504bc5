"""Sums that are decomposed and cut to the ranks of a rule, module by module."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float64
from torch import Tensor

from florist.factors import LoraFactor
from florist.linalg import ThinSvd, WeightedFactor, cut_norms
from florist.linalg.parallel import in_order
from florist.linalg.spectrum import Spectrum
from florist.ranks import RankRule

Decompose = Callable[[str, float], ThinSvd]
"""(module, energy) -> the decomposition of its sum, as far as that fraction of its energy; see `linalg.decompose`."""

Exact = Callable[[str], Sequence[WeightedFactor]]
"""(module) -> the parts of its exact sum."""


Shrinkage = Callable[[Spectrum, int], Float64[Tensor, " p"]]
"""(spectrum, p) -> what the leading p directions get in the place of their singular values."""


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


def cut_by_rule(
    rule: RankRule,
    modules: Sequence[str],
    decompose: Decompose,
    exact: Exact,
    shrinkage: Shrinkage | None = None,
) -> Iterator[Cut]:
    """Decompose each module and cut it to the rank that the rule chooses. Several modules are worked on at once.

    Args:
        rule: says how many directions each module keeps.
        modules: the names of the modules.
        decompose: decomposes the sum of one.
        exact: gives the parts of it.
        shrinkage: says with which values they are kept; by default with their own.

    Cost: one decomposition a module; two where the rule looks at all modules before it names a rank. Where so little is
    left out that rounding may exceed it, the parts are read again for `linalg.residual.residual_norm`.
    """
    return (_one_by_one if rule.per_module else _all_together)(rule, modules, decompose, exact, shrinkage)


def _values(shrinkage: Shrinkage | None, spectrum: Spectrum, rank: int) -> Float64[Tensor, " p"] | None:
    return shrinkage(spectrum, rank) if shrinkage is not None else None


def _one_by_one(
    rule: RankRule, modules: Sequence[str], decompose: Decompose, exact: Exact, shrinkage: Shrinkage | None
) -> Iterator[Cut]:
    def cut(name: str) -> Cut:
        svd = decompose(name, rule.required_energy)
        spectrum = svd.spectrum
        rank = rule({name: spectrum})[name]
        values = _values(shrinkage, spectrum, rank)
        factor = svd.factor(rank, values)
        del svd  # and with it the stack, before the parts are stacked again
        return Cut(name, factor, *cut_norms(partial(exact, name), spectrum, factor, values))

    return in_order(cut, modules)


def _all_together(
    rule: RankRule, modules: Sequence[str], decompose: Decompose, exact: Exact, shrinkage: Shrinkage | None
) -> Iterator[Cut]:
    # The rule needs every spectrum before it names a rank. The singular vectors of all modules could take more
    # memory than all inputs until then; decomposing twice takes twice the time and the memory of one module.
    energy = rule.required_energy
    spectra = dict(zip(modules, in_order(lambda name: decompose(name, energy).spectrum, modules), strict=True))
    ranks = rule(spectra)

    def cut(name: str) -> Cut:
        values = _values(shrinkage, spectra[name], ranks[name])
        factor = decompose(name, energy).factor(ranks[name], values)
        return Cut(name, factor, *cut_norms(partial(exact, name), spectra[name], factor, values))

    return in_order(cut, modules)
