"""Combine saved adapters into one, without rounds, and certify the result."""

from florist.one_shot.aggregated import AggregatedAdapter
from florist.one_shot.budget import FileBudget
from florist.one_shot.certificate import CERTIFICATE_NAME
from florist.one_shot.combining import aggregate, combine
from florist.one_shot.inputs import Inputs, open_inputs
from florist.one_shot.weights import CountedIn, Weights

__all__ = [
    "CERTIFICATE_NAME",
    "AggregatedAdapter",
    "CountedIn",
    "FileBudget",
    "Inputs",
    "Weights",
    "aggregate",
    "combine",
    "open_inputs",
]
