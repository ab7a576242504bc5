"""The metrics that a configuration asks for, the examples that they are measured on, and when."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from florist.config.sections import CLASSIFICATION, LANGUAGE_MODELLING, Config
from florist.config.splits import Splits
from florist.data import EncodedExamples, Example, read_examples, template_prompt
from florist.errors import ConfigurationError
from florist.evaluation import (
    Classification,
    ExactMatch,
    HarnessTasks,
    LanguageModelLoss,
    Metric,
    MultipleChoice,
    read_questions,
    require_tasks,
)

METRICS: Mapping[str, Mapping[str, Callable[[Config, EncodedExamples, PreTrainedTokenizerBase], Metric]]] = {
    LANGUAGE_MODELLING: {
        "loss": lambda config, examples, _: LanguageModelLoss(examples, config.evaluation.batch_size),
        # One pass gives both.
        "perplexity": lambda config, examples, _: LanguageModelLoss(examples, config.evaluation.batch_size),
        "exact_match": lambda config, examples, tokenizer: ExactMatch(
            examples, tokenizer, config.evaluation.batch_size, config.evaluation.max_new_tokens
        ),
        "multiple_choice": lambda config, _, tokenizer: _multiple_choice(config, tokenizer),
    },
    CLASSIFICATION: {
        # One pass gives both.
        "accuracy": lambda config, examples, _: Classification(examples, config.evaluation.batch_size),
        "loss": lambda config, examples, _: Classification(examples, config.evaluation.batch_size),
    },
}


def metric_names(config: Config) -> Sequence[str]:
    """Return the names of the metrics of the held-out examples.

    Raises:
        ConfigurationError: The task has no such metric.
    """
    known = METRICS[config.task.kind]
    names = config.evaluation.metrics or tuple(known)[:1]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigurationError(
            f"evaluation.metrics: unknown {unknown} for task.kind = {config.task.kind!r}, which has {list(known)}"
        )
    return names


def metrics(
    config: Config,
    names: Sequence[str],
    encode_held_out: Callable[[Sequence[Example], str], EncodedExamples],
    splits: Splits,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[tuple[Metric, ...], tuple[Metric, ...]]:
    """Return the metrics of every round, and further metrics of the final adapter."""
    on_validation = config.has_validation and config.evaluation.split != "test"
    # The questions are a test as well: whoever chooses by the metrics of the rounds must not have seen them.
    measured = [name for name in names if not (on_validation and name == "multiple_choice")]

    test = encode_held_out(splits.test, "the held-out examples")
    if on_validation:
        validation = encode_held_out(splits.validation, "the validation examples")
        in_rounds = metrics_on(config, measured, validation, tokenizer)
        at_the_end = metrics_on(config, names, test, tokenizer)
    else:
        in_rounds, at_the_end = metrics_on(config, names, test, tokenizer), ()
    return in_rounds, at_the_end + harness(config, tokenizer)


def metrics_on(
    config: Config, names: Sequence[str], examples: EncodedExamples, tokenizer: PreTrainedTokenizerBase
) -> tuple[Metric, ...]:
    """Return the metrics of these names on encoded examples, each measurement once."""
    found = [METRICS[config.task.kind][name](config, examples, tokenizer) for name in names]
    return tuple(metric for i, metric in enumerate(found) if metric not in found[:i])


def _multiple_choice(config: Config, tokenizer: PreTrainedTokenizerBase) -> MultipleChoice:
    evaluation = config.evaluation
    file = Path(config.data.path, evaluation.multiple_choice or "")
    questions = read_questions(
        read_examples(file),
        tokenizer,
        prompt=template_prompt(evaluation.choice_prompt),
        answer=template_prompt(evaluation.choice_answer),
        max_length=config.data.max_length,
        source=str(file),
    )
    return MultipleChoice(questions, tokenizer, evaluation.batch_size)


def harness(config: Config, tokenizer: PreTrainedTokenizerBase) -> tuple[Metric, ...]:
    """Return the tasks of lm-evaluation-harness that a configuration names, as one metric; or nothing."""
    evaluation = config.evaluation
    if not evaluation.harness_tasks:
        return ()
    own = evaluation.harness_task_path
    path = Path(config.data.path, own) if own is not None else None
    # Tasks that are missing are found before hours of training, not after them.
    require_tasks(evaluation.harness_tasks, path)
    return (HarnessTasks(tokenizer, evaluation.harness_tasks, path, evaluation.batch_size, evaluation.harness_limit),)
