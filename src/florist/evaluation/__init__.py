"""What is measured of a model: metrics on held-out examples, multiple choice, named benchmarks."""

from florist.evaluation.choices import MultipleChoice, Question, read_questions
from florist.evaluation.harness import HarnessTasks, evaluate_tasks, require_tasks
from florist.evaluation.metrics import LOWER_IS_BETTER, Classification, ExactMatch, LanguageModelLoss, Metric

__all__ = [
    "LOWER_IS_BETTER",
    "Classification",
    "ExactMatch",
    "HarnessTasks",
    "LanguageModelLoss",
    "Metric",
    "MultipleChoice",
    "Question",
    "evaluate_tasks",
    "read_questions",
    "require_tasks",
]
