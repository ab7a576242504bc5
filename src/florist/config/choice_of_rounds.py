"""How a configuration chooses among the rounds of its run."""

from florist.config.metrics import metric_names
from florist.config.sections import Config
from florist.errors import ConfigurationError
from florist.evaluation import lower_is_better
from florist.federation.choice_of_rounds import RoundChoice

_AT_THE_END = "multiple_choice"
"""The metric that is not measured in the rounds where there are validation examples: its questions are a test."""


def round_choice(config: Config) -> RoundChoice | None:
    """How rounds are chosen; None where all are played and the last is the result.

    The metric is the first of ``[evaluation]`` that is measured on the validation examples.

    Raises:
        ConfigurationError: the task has no such metric, or none is measured on the validation examples.
    """
    federation = config.federation
    if not federation.chooses:
        return None
    metric = next((name for name in metric_names(config) if name != _AT_THE_END), None)
    if metric is None:
        raise ConfigurationError(
            f"federation.early_stopping and best_round choose by a metric of the validation examples, and "
            f"evaluation.metrics has {_AT_THE_END!r} alone, which is a test: name another one first"
        )
    return RoundChoice(
        metric=metric,
        lower_is_better=lower_is_better(metric),
        patience=federation.early_stopping,
        min_delta=federation.min_delta,
        keep_best=federation.best_round,
    )
