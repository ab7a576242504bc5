"""The task of a configuration."""

from typing import Literal

from pydantic import model_validator

from florist.config.sections.section import Section

LANGUAGE_MODELLING = "causal-lm"
CLASSIFICATION = "sequence-classification"


class TaskSection(Section):
    """``[task]``: what the model learns."""

    kind: Literal["causal-lm", "sequence-classification"] = LANGUAGE_MODELLING
    """Whether the model learns to answer (``causal-lm``) or to name a class (``sequence-classification``)."""
    labels: tuple[str, ...] | None = None
    """The names of the classes, for classification; by default those found in the training examples."""

    @model_validator(mode="after")
    def _consistent(self) -> "TaskSection":
        if self.labels is not None and self.kind != CLASSIFICATION:
            raise ValueError(f"labels are for kind = {CLASSIFICATION!r}, and kind is {self.kind!r}: remove one")
        if self.labels is not None and len(set(self.labels)) < 2:
            raise ValueError(f"labels must name at least two classes, got {list(self.labels)}: add the others")
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels must differ, got {list(self.labels)}: name each class once")
        return self
