"""Look at adapters: their spectra, what a threshold would keep, what stands out, and which fit together."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from florist.aggregation import decompose_module
from florist.checkpoint import LINEAR, AdapterLayout, SavedAdapter, compare, stored_bytes
from florist.factors import AdapterState
from florist.linalg.parallel import in_order
from florist.linalg.spectrum import Spectrum
from florist.ranks import EnergyThreshold, RankRule
from florist.rounds import ClientUpdate

USUAL_TAUS = (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)

OUTLIER_FACTOR = 10.0
"""A norm is an outlier if it is this many times above or below the median of its kind."""


@dataclass(frozen=True, slots=True, eq=False)
class ModuleView:
    """One module of one adapter.

    Attributes:
        spectrum: the spectrum of its update.
        rank: the rank at which it is stored.
        ranks: the rank that each of `USUAL_TAUS` would keep.
        outlier: how many times the median norm of the adapter's modules of its kind the norm is; None if that is within
            `OUTLIER_FACTOR` either way.
    """

    spectrum: Spectrum
    rank: int
    ranks: Mapping[float, int]
    outlier: float | None

    @property
    def norm(self) -> float:
        """``||dW||_F``."""
        return self.spectrum.total_energy**0.5

    @property
    def dead_directions(self) -> int:
        """How many stored directions carry nothing, which is the rank less the numerical rank."""
        return max(0, self.rank - self.spectrum.numerical_rank)


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """What one threshold would give.

    Attributes:
        tau: the fraction of every module's energy that is kept.
        total_rank: the sum of the modules' ranks.
        nbytes: the bytes of the factors as they are written in float32, from `checkpoint.stored_bytes`.
        relative_error: the error of all modules together, without the rounding of the factors, about 1e-7 in float32;
            a cut that leaves out less is as good as whole.
    """

    tau: float
    total_rank: int
    nbytes: int
    relative_error: float


def spectra(
    updates: Sequence[ClientUpdate], on_module: Callable[[int, int], None] | None = None
) -> dict[str, Spectrum]:
    """The whole spectrum of every module of the weighted sum.

    Args:
        updates: the updates of one round, in the order of their client ids.
        on_module: a function that is told how many modules are done, and how many there are.

    Cost: one decomposition a module. Any number of rules can be asked afterwards.
    """
    names = sorted(set().union(*(update.adapter for update in updates)))

    def look(name: str) -> Spectrum:
        return decompose_module(updates, name, 1.0).spectrum

    found: dict[str, Spectrum] = {}
    for name, one in zip(names, in_order(look, names), strict=True):
        found[name] = one
        if on_module is not None:
            on_module(len(found), len(names))
    return found


def view(saved: SavedAdapter, on_module: Callable[[int, int], None] | None = None) -> dict[str, ModuleView]:
    """Look at every module of one adapter, and find what stands out among the modules of its kind.

    Modules of one name in different layers are of one kind, as ``q_proj``. The outlier itself does not move the median,
    as it would move a mean and a standard deviation.
    """
    own = spectra([ClientUpdate(str(saved.path), saved.adapter, 1, 1)], on_module)
    norms: dict[str, list[float]] = {}
    for name, one in own.items():
        norms.setdefault(kind(name), []).append(one.total_energy**0.5)
    medians = {each: statistics.median(values) for each, values in norms.items()}
    return {
        name: ModuleView(
            spectrum=one,
            rank=saved.adapter.specs[name].rank,
            ranks={tau: EnergyThreshold(tau)({name: one})[name] for tau in USUAL_TAUS},
            outlier=_outlier(one.total_energy**0.5, medians[kind(name)]),
        )
        for name, one in own.items()
    }


def combinable(
    adapters: Sequence[SavedAdapter], *, allow_base_mismatch: bool = False, average_full: bool = False
) -> list[tuple[SavedAdapter, ...]]:
    """Find groups of adapters that may be aggregated with each other, the largest first.

    Each adapter goes to the first group that it fits into. An adapter that cannot be aggregated even alone is in none.

    Args:
        adapters: the adapters, in the order in which groups are formed.
        allow_base_mismatch: whether `checkpoint.compare` accepts unlike base models.
        average_full: whether `checkpoint.compare` accepts saved parameters.

    Cost: a comparison for each adapter and group.
    """

    def problems(group: Sequence[SavedAdapter]) -> tuple[str, ...]:
        return compare(group, allow_base_mismatch=allow_base_mismatch, average_full=average_full).problems

    groups: list[list[SavedAdapter]] = []
    for adapter in adapters:
        if problems([adapter]):
            continue
        for group in groups:
            if not problems([*group, adapter]):
                group.append(adapter)
                break
        else:
            groups.append([adapter])
    return [tuple(group) for group in sorted(groups, key=len, reverse=True)]


def unlike_norms(adapters: Sequence[SavedAdapter]) -> dict[str, float]:
    """Find adapters whose update is far larger or smaller than the median of all: path -> times the median.

    Training that diverged and a scaling that was forgotten show here. Two adapters have no majority and are not judged.
    """
    norms = {str(saved.path): _norm(saved.adapter) for saved in adapters}
    if len(norms) < 3:
        return {}
    median = statistics.median(norms.values())
    outliers = {path: _outlier(norm, median) for path, norm in norms.items()}
    return {path: times for path, times in outliers.items() if times is not None}


def sweep_thresholds(
    spectra: Mapping[str, Spectrum], taus: Sequence[float], *, layout: AdapterLayout = LINEAR
) -> list[SweepPoint]:
    """What each threshold would give, without another decomposition; `layout` decides how many bytes it takes."""
    shapes = {name: one.shape for name, one in spectra.items()}
    energy = sum(one.total_energy for one in spectra.values())
    points: list[SweepPoint] = []
    for tau in taus:
        rule: RankRule = EnergyThreshold(tau)
        ranks = rule(spectra)
        lost = sum(one.discarded_energy(ranks[name]) for name, one in spectra.items())
        nbytes = stored_bytes(shapes, ranks, layout=layout)
        points.append(SweepPoint(tau, sum(ranks.values()), nbytes, (lost / energy) ** 0.5 if energy else 0.0))
    return points


def kind(module: str) -> str:
    """The end of a module's name that it shares with its kin in other layers, as ``q_proj``.

    It begins with the last part of the name that is more than a number or PEFT's ``base_layer``: ``to_out.0``,
    ``experts.base_layer``. The experts of one layer are of one kind.
    """
    parts = module.partition("[")[0].split(".")
    names = [position for position, part in enumerate(parts) if not part.isdigit() and part != "base_layer"]
    return ".".join(parts[max(names, default=0) :])


def _outlier(norm: float, median: float) -> float | None:
    if median == 0:
        return None
    times = norm / median
    return times if times > OUTLIER_FACTOR or times < 1 / OUTLIER_FACTOR else None


def _norm(adapter: AdapterState) -> float:
    return math.hypot(*(factor.energy() ** 0.5 for factor in adapter.values()))
