"""Aggregation methods, one a file, and the exact sum that they are measured against."""

from florist.aggregation.florist import Florist
from florist.aggregation.weighted_sum import decompose_module, lossless_sum

__all__ = ["Florist", "decompose_module", "lossless_sum"]
