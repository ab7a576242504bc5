"""Robust aggregation rules, one a file: what weight each client gets where some of them may be hostile.

A rule sees the inner products of the updates, and nothing else of them. `reweighted` then hands its weights to any
aggregation method, so that a rule goes with every method, with compression, and with feedback.
"""

from collections.abc import Callable, Mapping

from florist.aggregation.robust.clipped_mean import NormClippedMean
from florist.aggregation.robust.geometric_median import GeometricMedian
from florist.aggregation.robust.multi_krum import MultiKrum
from florist.aggregation.robust.reweighting import reweighted
from florist.aggregation.robust.rule import RobustRule, bounded_weights, most_hostile

MAKERS: Mapping[str, Callable[[float], RobustRule]] = {
    "clipped-mean": NormClippedMean,
    "geometric-median": GeometricMedian,
    "multi-krum": MultiKrum,
}
"""The rule of a name in a configuration, for the largest fraction of hostile clients that is expected."""

__all__ = [
    "MAKERS",
    "GeometricMedian",
    "MultiKrum",
    "NormClippedMean",
    "RobustRule",
    "bounded_weights",
    "most_hostile",
    "reweighted",
]
