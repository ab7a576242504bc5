"""A whole configuration, and what must agree between its sections."""

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from florist.config.communication import contradictions, with_default_preset, with_preset
from florist.config.methods import DEFAULT_METHOD
from florist.config.privacy import contradictions as privacy_contradictions
from florist.config.sections.aggregation import AggregationSection
from florist.config.sections.communication import CommunicationSection
from florist.config.sections.data import DataSection
from florist.config.sections.evaluation import EvaluationSection
from florist.config.sections.federation import FederationSection
from florist.config.sections.flower import FlowerSection
from florist.config.sections.guard import GuardSection
from florist.config.sections.lora import LoraSection
from florist.config.sections.model import ModelSection
from florist.config.sections.privacy import PrivacySection
from florist.config.sections.section import Section
from florist.config.sections.task import CLASSIFICATION, LANGUAGE_MODELLING, TaskSection
from florist.config.sections.tracking import TrackingSection
from florist.config.sections.training import TrainingSection


class Config(Section):
    """A whole configuration."""

    model: ModelSection
    task: TaskSection = TaskSection()
    data: DataSection
    lora: LoraSection
    training: TrainingSection = TrainingSection()
    federation: FederationSection = FederationSection()
    aggregation: AggregationSection = AggregationSection()
    communication: CommunicationSection = CommunicationSection()
    guard: GuardSection = GuardSection()
    privacy: PrivacySection = PrivacySection()
    evaluation: EvaluationSection = EvaluationSection()
    tracking: TrackingSection = TrackingSection()
    flower: FlowerSection = FlowerSection()

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, given: Any) -> Any:
        given = with_default_preset(given) if isinstance(given, Mapping) else given
        communication = given.get("communication") if isinstance(given, Mapping) else None
        if not isinstance(communication, Mapping):
            return given
        aggregation = given.get("aggregation")
        chosen = aggregation.get("method") if isinstance(aggregation, Mapping) else None
        return {**given, "communication": with_preset(communication, str(chosen or DEFAULT_METHOD))}

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        wrong: list[str] = []
        ranks, clients = self.lora.ranks, self.data.num_clients
        if isinstance(ranks, tuple) and clients is not None and len(ranks) != clients:
            wrong.append(f"lora.ranks lists {len(ranks)} clients and data.num_clients says {clients}: make them agree")
        if self.data.partition not in {"given", "by-field"} and clients is None and not isinstance(ranks, tuple):
            wrong.append(f"data.partition = {self.data.partition!r} needs data.num_clients, or lora.ranks as a list")
        if self.task.kind == CLASSIFICATION and self.data.label_field is None:
            wrong.append(f"task.kind = {CLASSIFICATION!r} needs data.label_field, the field that holds the class")
        if self.task.kind == CLASSIFICATION and self.data.instruction_field is not None:
            wrong.append(
                f"data.instruction_field and output_field are for task.kind = {LANGUAGE_MODELLING!r}: name the text to "
                "classify with data.prompt_template, as '{text}'"
            )
        if self.task.kind == CLASSIFICATION and (self.evaluation.harness_tasks or self.data.chat_template is True):
            wrong.append(f"evaluation.harness_tasks and data.chat_template are for task.kind = {LANGUAGE_MODELLING!r}")
        wrong.extend(contradictions(self.aggregation.method, self.communication))
        wrong.extend(privacy_contradictions(self))
        if self.evaluation.split == "validation" and not self.has_validation:
            wrong.append("evaluation.split = 'validation' needs data.validation or data.validation_fraction")
        if self.federation.chooses and not (self.has_validation and self.evaluation.split != "test"):
            wrong.append(
                "federation.early_stopping and best_round choose by the validation examples, since a test that was "
                "chosen by is none: set data.validation or data.validation_fraction, and evaluation.split to none but "
                "'validation'"
            )
        if self.task.kind == LANGUAGE_MODELLING and self.data.label_field is not None:
            wrong.append(f"data.label_field is for task.kind = {CLASSIFICATION!r}, and it is {LANGUAGE_MODELLING!r}")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def has_validation(self) -> bool:
        """Whether some examples are set apart to choose by."""
        return self.data.validation is not None or self.data.validation_fraction is not None
