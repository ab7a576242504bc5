"""What is measured of a model: metrics on held-out examples, multiple choice, named benchmarks."""

from florist.evaluation.choices import MultipleChoice, Question, read_questions
from florist.evaluation.directions import Measurements, known_directions, lower_is_better
from florist.evaluation.harness import HarnessTasks, evaluate_tasks, require_tasks
from florist.evaluation.metrics import Classification, ExactMatch, LanguageModelLoss, Metric

__all__ = [
    "Classification",
    "ExactMatch",
    "HarnessTasks",
    "LanguageModelLoss",
    "Measurements",
    "Metric",
    "MultipleChoice",
    "Question",
    "evaluate_tasks",
    "known_directions",
    "lower_is_better",
    "read_questions",
    "require_tasks",
]
