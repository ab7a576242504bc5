"""The measurements of a configuration."""

from typing import Literal

from pydantic import model_validator

from florist.config.sections.section import Positive, Section


class EvaluationSection(Section):
    """``[evaluation]``: what is measured on the held-out examples."""

    metrics: tuple[str, ...] | None = None
    """Language models have ``loss``, ``perplexity``, ``exact_match`` and ``multiple_choice``; classifiers have
    ``accuracy`` and ``loss``. By default the first of them is measured."""
    every: Positive = 1
    """Every so many rounds are evaluated, and the last one always."""
    split: Literal["validation", "test"] | None = None
    """The examples that the rounds are measured on; by default the validation examples where there are some. The final
    adapter is then measured on the test examples as well."""
    by_client: bool = False
    """Whether the rounds are measured on the held-out examples of each client as well."""
    batch_size: Positive = 32
    """How many examples are measured together."""
    max_new_tokens: Positive = 64
    """How many tokens a generated answer may have."""
    multiple_choice: str | None = None
    """The file of the questions for ``multiple_choice``."""
    choice_prompt: str = "{question}\nAnswer:"
    """The text before a choice, from ``{question}``, ``{options}`` (a line each: ``A. ...``) and the question's own
    fields."""
    choice_answer: str = " {choice}"
    """The text whose likelihood is measured, from ``{choice}`` and ``{letter}``."""
    harness_tasks: tuple[str, ...] = ()
    """The tasks of lm-evaluation-harness to measure the final adapter on; they take the extra ``[eval]``."""
    harness_task_path: str | None = None
    """The directory of task files of your own for lm-evaluation-harness."""
    harness_limit: Positive | None = None
    """How many examples of each task are measured, to try a configuration; by default all."""

    @model_validator(mode="after")
    def _consistent(self) -> "EvaluationSection":
        asked = "multiple_choice" in (self.metrics or ())
        if asked and self.multiple_choice is None:
            raise ValueError("metrics has 'multiple_choice': set multiple_choice, the file of the questions")
        if self.multiple_choice is not None and not asked:
            raise ValueError("multiple_choice is a file of questions: add 'multiple_choice' to metrics")
        return self
