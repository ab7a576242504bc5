"""Looking at adapters: spectra, what a threshold would keep, dead directions, outliers."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from florist.aggregation import decompose_module
from florist.checkpoint import SavedAdapter
from florist.factors import AdapterState
from florist.parallel import in_order
from florist.ranks import EnergyThreshold, RankRule
from florist.rounds import ClientUpdate
from florist.spectrum import Spectrum

USUAL_TAUS = (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)

OUTLIER_FACTOR = 10.0
"""A norm this many times above or below the median of its kind is pointed out."""


@dataclass(frozen=True, slots=True, eq=False)
class ModuleView:
    """One module of one adapter.

    Attributes:
        spectrum: of its update.
        rank: as stored.
        ranks: what each of `USUAL_TAUS` would keep.
        outlier: how many times the median norm of the adapter's modules of the same kind its norm is, where that is
            beyond `OUTLIER_FACTOR` either way; else None.
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
        """Stored directions that carry nothing: the rank less the numerical rank."""
        return max(0, self.rank - self.spectrum.numerical_rank)


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """What one threshold would give.

    Attributes:
        tau: fraction of the energy, per module.
        total_rank: summed over the modules.
        nbytes: of the factors in float32; a module of rank 0 is stored with rank 1.
        relative_error: over all modules together.
    """

    tau: float
    total_rank: int
    nbytes: int
    relative_error: float


def spectra(updates: Sequence[ClientUpdate]) -> dict[str, Spectrum]:
    """The whole spectrum of every module of the weighted sum.

    Cost: one decomposition a module; any number of rules can be asked afterwards.
    """
    names = sorted(set().union(*(update.adapter for update in updates)))

    def look(name: str) -> Spectrum:
        return decompose_module(updates, name, 1.0).spectrum

    return dict(zip(names, in_order(look, names), strict=True))


def view(saved: SavedAdapter) -> dict[str, ModuleView]:
    """Every module of one adapter, with what stands out among the modules of its kind.

    A kind is what modules of one name in different layers are: ``q_proj``. The median is not moved by the outlier
    itself, as a mean and standard deviation would be.
    """
    own = spectra([ClientUpdate(str(saved.path), saved.adapter, 1, 1)])
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


def unlike_norms(adapters: Sequence[SavedAdapter]) -> dict[str, float]:
    """Adapters whose update is far larger or smaller than the median of all: path -> times the median.

    One client's diverged training or forgotten scaling shows here. Two adapters have no majority and are not judged.
    """
    norms = {str(saved.path): _norm(saved.adapter) for saved in adapters}
    if len(norms) < 3:
        return {}
    median = statistics.median(norms.values())
    outliers = {path: _outlier(norm, median) for path, norm in norms.items()}
    return {path: times for path, times in outliers.items() if times is not None}


def sweep(spectra: Mapping[str, Spectrum], taus: Sequence[float]) -> list[SweepPoint]:
    """What each threshold would give, without another decomposition."""
    energy = sum(one.total_energy for one in spectra.values())
    points: list[SweepPoint] = []
    for tau in taus:
        rule: RankRule = EnergyThreshold(tau)
        ranks = rule(spectra)
        lost = sum(one.discarded_energy(ranks[name]) for name, one in spectra.items())
        nbytes = sum(4 * max(1, ranks[name]) * sum(one.shape) for name, one in spectra.items())
        points.append(SweepPoint(tau, sum(ranks.values()), nbytes, (lost / energy) ** 0.5 if energy else 0.0))
    return points


def kind(module: str) -> str:
    """The last part of a module's name, which layers share."""
    return module.rpartition(".")[2]


def _outlier(norm: float, median: float) -> float | None:
    if median == 0:
        return None
    times = norm / median
    return times if times > OUTLIER_FACTOR or times < 1 / OUTLIER_FACTOR else None


def _norm(adapter: AdapterState) -> float:
    return sum(factor.energy() for factor in adapter.values()) ** 0.5
