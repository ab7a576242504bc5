"""The configuration, as frozen sections: a file for each table of the TOML file has its keys, types and defaults.

LoRA and training keys carry the names that PEFT and transformers give them.
"""

from florist.config.sections.aggregation import AggregationSection
from florist.config.sections.communication import CommunicationSection
from florist.config.sections.config import Config
from florist.config.sections.data import DataSection, as_slice
from florist.config.sections.federation import FederationSection
from florist.config.sections.guard import GuardSection
from florist.config.sections.privacy import PrivacySection
from florist.config.sections.section import FROM_CODE, Section
from florist.config.sections.task import CLASSIFICATION, LANGUAGE_MODELLING
from florist.config.sections.tracking import TrackingSection

__all__ = [
    "CLASSIFICATION",
    "FROM_CODE",
    "LANGUAGE_MODELLING",
    "AggregationSection",
    "CommunicationSection",
    "Config",
    "DataSection",
    "FederationSection",
    "GuardSection",
    "PrivacySection",
    "Section",
    "TrackingSection",
    "as_slice",
]
