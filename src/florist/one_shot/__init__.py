"""Adapters made without rounds, and certified: many saved ones into one, and one from a fine-tuned model."""

from florist.one_shot.aggregated import AggregatedAdapter
from florist.one_shot.budget import FileBudget
from florist.one_shot.certificate import CERTIFICATE_NAME
from florist.one_shot.combining import aggregate, combine
from florist.one_shot.extraction import ExtractedAdapter, extract
from florist.one_shot.inputs import Inputs, open_inputs
from florist.one_shot.model_difference import ModelDifference, Others, compare_models
from florist.one_shot.weights import CountedIn, Weights

__all__ = [
    "CERTIFICATE_NAME",
    "AggregatedAdapter",
    "CountedIn",
    "ExtractedAdapter",
    "FileBudget",
    "Inputs",
    "ModelDifference",
    "Others",
    "Weights",
    "aggregate",
    "combine",
    "compare_models",
    "extract",
    "open_inputs",
]
