"""Aggregation methods, one a file, and the exact sum that they are measured against.

``docs/adding-a-method.md`` walks through one of them.
"""

from florist.aggregation.fedex import FedEx
from florist.aggregation.fedit import FedIt
from florist.aggregation.fedsvd import FedSvd
from florist.aggregation.ffa import FfaLora
from florist.aggregation.flexlora import FlexLora
from florist.aggregation.flora import Flora
from florist.aggregation.florist import Florist
from florist.aggregation.full import FullFineTuning
from florist.aggregation.linear import LinearRounds
from florist.aggregation.raflora import RaFlora
from florist.aggregation.weighted_sum import decompose_module, lossless_sum, module_parts
from florist.aggregation.whole_sum import WholeSum

__all__ = [
    "FedEx",
    "FedIt",
    "FedSvd",
    "FfaLora",
    "FlexLora",
    "Flora",
    "Florist",
    "FullFineTuning",
    "LinearRounds",
    "RaFlora",
    "WholeSum",
    "decompose_module",
    "lossless_sum",
    "module_parts",
]
