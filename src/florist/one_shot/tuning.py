"""Choose tau: find what every threshold costs, and what the model is worth with it, from one decomposition.

Source: FLoRIST, arXiv:2506.09199, whose two operating points are FLoRIST-O, the tau of the best metric, and FLoRIST-E,
the lowest tau that still matches the best baseline. Both are picks on one sweep.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from florist.checkpoint import LINEAR, AdapterLayout, stored_bytes
from florist.errors import ConfigurationError
from florist.factors import AdapterState
from florist.linalg import ordered_spectrum
from florist.ranks import EnergyThreshold

Evaluate = Callable[[AdapterState], Mapping[str, float]]
"""A function that measures the model with an adapter. It returns metrics by name, from examples that are no test."""


@dataclass(frozen=True, slots=True)
class Point:
    """What one threshold gives.

    Attributes:
        tau: the fraction of every module's energy that is kept.
        ranks: the rank of every module.
        nbytes: the bytes of the factors as they are written in float32, from `checkpoint.stored_bytes`.
        relative_error: the error against the whole adapter, ``||dW - dW_tau||_F / ||dW||_F`` over all modules together.
        metrics: what was measured of the model with the adapter cut to `ranks`.
    """

    tau: float
    ranks: Mapping[str, int]
    nbytes: int
    relative_error: float
    metrics: Mapping[str, float]

    @property
    def total_rank(self) -> int:
        """The sum of the ranks."""
        return sum(self.ranks.values())


@dataclass(frozen=True, slots=True)
class Goal:
    """What makes a point good, and good enough.

    Args:
        metric: the name of the metric that decides.
        lower_is_better: whether a lower value of it is better.
        baseline: its value for the best of the other methods; None to compare with tau = 1, the adapter as it is.
        margin: how far a point may fall short of that and still match it, in the metric's own unit.

    Raises:
        ConfigurationError: the baseline is no number, or the margin is negative or no number.
    """

    metric: str
    lower_is_better: bool
    baseline: float | None = None
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.baseline is not None and not math.isfinite(self.baseline):
            raise ConfigurationError(
                f"expected a finite baseline, got {self.baseline}; give the value of a measurement"
            )
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise ConfigurationError(
                f"expected a margin of 0 or more, in the unit of {self.metric}, got {self.margin}; a point may fall "
                "short of the baseline by that much"
            )

    def gain(self, value: float) -> float:
        """Turn a value of the metric into a number of which more is better. NaN is worse than anything."""
        if math.isnan(value):
            return -math.inf
        return -value if self.lower_is_better else value

    def value(self, point: Point) -> float:
        """The metric of a point.

        Raises:
            ConfigurationError: the metric was not measured.
        """
        if self.metric not in point.metrics:
            raise ConfigurationError(
                f"expected the metric {self.metric!r} among those measured, got {sorted(point.metrics)}; name one of "
                "these"
            )
        return point.metrics[self.metric]

    def reference(self, points: Collection[Point]) -> float:
        """What a point has to match, which is the baseline or the metric at tau = 1.

        Raises:
            ConfigurationError: there is neither.
        """
        if self.baseline is not None:
            return self.baseline
        whole = next((point for point in points if point.tau == 1), None)
        if whole is None:
            raise ConfigurationError(
                "expected tau = 1 among the thresholds, to compare the others with, or a baseline, got neither; add one"
            )
        return self.value(whole)

    def matched_by(self, point: Point, reference: float) -> bool:
        """Whether a point is not worse than a reference by more than the margin."""
        gain = self.gain(self.value(point))
        if gain == -math.inf:
            return False
        short = self.gain(reference) - gain
        # 0.8 - 0.7 is more than 0.1 in floating point, and a margin of 0.1 is meant to allow it.
        return short <= self.margin or math.isclose(short, self.margin, rel_tol=1e-9)


def sweep(
    adapter: AdapterState,
    taus: Sequence[float],
    evaluate: Evaluate,
    *,
    layout: AdapterLayout = LINEAR,
    on_point: Callable[[Point], None] | None = None,
) -> list[Point]:
    """Cut an adapter at every threshold and measure the model with it.

    The adapter's components are singular directions in descending order, so that its first components make every cut
    and nothing is decomposed. Thresholds that keep the same ranks are evaluated once.

    Args:
        adapter: the whole adapter, as `aggregation.lossless_sum` or FLoRIST at tau = 1 gives it.
        taus: thresholds in (0, 1], in any order.
        evaluate: measures the model with a cut.
        layout: how the adapter is stored, which decides its bytes.
        on_point: a function that is told of every point as soon as it is known.

    Returns:
        One point a threshold, the lowest threshold first.

    Raises:
        ConfigurationError: there is no threshold, or one lies outside (0, 1].
        InvalidAdapterError: the components are in another order, which `linalg.ordered_spectrum` refuses.

    Cost: at most one evaluation a threshold.
    """
    cuts = _Cuts(adapter, layout, evaluate, on_point)
    return [cuts.point(tau) for tau in _ascending(taus)]


def bisect(
    adapter: AdapterState,
    taus: Sequence[float],
    evaluate: Evaluate,
    goal: Goal,
    *,
    layout: AdapterLayout = LINEAR,
    on_point: Callable[[Point], None] | None = None,
) -> list[Point]:
    """Find the lowest threshold that matches the baseline with few evaluations.

    The search assumes that the metric does not get worse as tau grows. `pick_efficient` then picks from its points what
    it would pick from the whole sweep. If the metric does get worse somewhere, a lower threshold that matches may be
    missed.

    Args:
        adapter: the whole adapter, as `sweep` takes it.
        taus: thresholds in (0, 1], in any order. 1 is among them if the goal has no baseline.
        evaluate: measures the model with a cut.
        goal: what a threshold has to match.
        layout: how the adapter is stored, which decides its bytes.
        on_point: a function that is told of every point as soon as it is known.

    Returns:
        The points that were evaluated, the lowest threshold first. It is the highest alone if that does not match.

    Raises:
        ConfigurationError: `sweep`, `Goal.value` or `Goal.reference` refuses what is given.
        InvalidAdapterError: the components are in another order, which `linalg.ordered_spectrum` refuses.

    Cost: at most 1 + log2(n) evaluations, rounded up, for n thresholds.
    """
    cuts, ordered = _Cuts(adapter, layout, evaluate, on_point), _ascending(taus)
    points = {ordered[-1]: cuts.point(ordered[-1])}
    reference = goal.reference(points.values())
    if not goal.matched_by(points[ordered[-1]], reference):
        return [*points.values()]
    lowest, matching = 0, len(ordered) - 1
    while lowest < matching:
        middle = (lowest + matching) // 2
        point = points[ordered[middle]] = cuts.point(ordered[middle])
        if goal.matched_by(point, reference):
            matching = middle
        else:
            lowest = middle + 1
    return [points[tau] for tau in sorted(points)]


def pick_optimal(points: Collection[Point], goal: Goal) -> Point:
    """Pick FLoRIST-O, the point of the best metric. Among equal ones it is that of the lowest tau.

    Raises:
        ConfigurationError: no point has a number for the metric.
    """
    best = min(points, key=lambda point: (-goal.gain(goal.value(point)), point.tau), default=None)
    if best is None or math.isnan(goal.value(best)):
        raise ConfigurationError(
            f"expected a number for {goal.metric!r} at one threshold at least, got none; choose by another metric"
        )
    return best


def pick_efficient(points: Collection[Point], goal: Goal) -> Point | None:
    """Pick FLoRIST-E, the lowest tau that is worse than the baseline by no more than the margin; None if all are.

    Raises:
        ConfigurationError: there is nothing to compare with, as `Goal.reference` says.
    """
    reference = goal.reference(points)
    matching = [point for point in points if goal.matched_by(point, reference)]
    return min(matching, key=lambda point: point.tau, default=None)


def evaluations(points: Collection[Point]) -> int:
    """How many evaluations made these points. Points of the same ranks share one."""
    return len({tuple(point.ranks.values()) for point in points})


class _Cuts:
    """The cuts of one adapter, each evaluated once."""

    def __init__(
        self,
        adapter: AdapterState,
        layout: AdapterLayout,
        evaluate: Evaluate,
        on_point: Callable[[Point], None] | None,
    ) -> None:
        self._adapter = adapter
        self._layout = layout
        self._evaluate = evaluate
        self._on_point = on_point
        self._spectra = {name: ordered_spectrum(factor) for name, factor in adapter.items()}
        self._measured: dict[tuple[int, ...], Mapping[str, float]] = {}

    def point(self, tau: float) -> Point:
        ranks = EnergyThreshold(tau)(self._spectra)
        cut = AdapterState.of({name: factor.leading(ranks[name]) for name, factor in self._adapter.items()})
        key = tuple(ranks.values())
        if key not in self._measured:
            self._measured[key] = self._evaluate(cut)
        energy = sum(spectrum.total_energy for spectrum in self._spectra.values())
        lost = sum(spectrum.discarded_energy(ranks[name]) for name, spectrum in self._spectra.items())
        point = Point(
            tau=tau,
            ranks=ranks,
            nbytes=stored_bytes({name: s.shape for name, s in self._spectra.items()}, ranks, layout=self._layout),
            relative_error=(lost / energy) ** 0.5 if energy else 0.0,
            metrics=self._measured[key],
        )
        if self._on_point is not None:
            self._on_point(point)
        return point


def _ascending(taus: Sequence[float]) -> list[float]:
    if not taus:
        raise ConfigurationError("expected at least one threshold tau in (0, 1], got none")
    return sorted({EnergyThreshold(tau).tau for tau in taus})
