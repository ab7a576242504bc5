"""The metrics that a configuration asks for, the examples that they are measured on, and when."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from florist.config.sections import CLASSIFICATION, LANGUAGE_MODELLING, Config
from florist.config.splits import Splits
from florist.data.examples import EncodedExamples
from florist.data.prompts import template_prompt
from florist.data.reading import Example, read_examples
from florist.errors import ConfigurationError, MissingInputError
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

    test = encode_held_out(splits.test if names else (), "the held-out examples")
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


def client_metrics(
    config: Config,
    names: Sequence[str],
    encode_held_out: Callable[[Sequence[Example], str], EncodedExamples],
    splits: Splits,
    tokenizer: PreTrainedTokenizerBase,
) -> Mapping[str, tuple[Metric, ...]]:
    """Return the metrics of every round on the held-out examples of each client; none where they are not asked for.

    Raises:
        ConfigurationError: They are asked for, and no client has held-out examples of its own.
    """
    by_client = _own_examples(config, splits)
    names = [name for name in names if name != "multiple_choice"]  # its questions belong to nobody

    def of(examples: EncodedExamples) -> tuple[Metric, ...]:
        found = [METRICS[config.task.kind][name](config, examples, tokenizer) for name in names]
        return tuple(metric for i, metric in enumerate(found) if metric not in found[:i])

    return {
        client_id: of(encode_held_out(examples, f"the held-out examples of {client_id}"))
        for client_id, examples in by_client.items()
    }


def require_own_examples(config: Config, splits: Splits) -> None:
    """Check that clients have held-out examples of their own where these are to be measured.

    Raises:
        ConfigurationError: They have not.
    """
    _own_examples(config, splits)


def _own_examples(config: Config, splits: Splits) -> Mapping[str, Sequence[Example]]:
    if not config.evaluation.by_client:
        return {}
    on_validation = config.has_validation and config.evaluation.split != "test"
    own = splits.validation_by_client if on_validation else splits.test_by_client
    if not own:
        what = "validation" if on_validation else "test"
        raise ConfigurationError(
            f"evaluation.by_client = true: expected {what} examples of every client's own, and data.{what} has those "
            f"of all together; leave that out, and data.{what}_fraction of every client's examples is held out"
        )
    return own


def _multiple_choice(config: Config, tokenizer: PreTrainedTokenizerBase) -> MultipleChoice:
    evaluation = config.evaluation
    file = Path(evaluation.multiple_choice or "")
    _require_there(file, "multiple_choice", config)
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
    path = Path(own) if own is not None else None
    if path is not None:
        _require_there(path, "harness_task_path", config)
    # Tasks that are missing are found before hours of training, not after them.
    require_tasks(evaluation.harness_tasks, path)
    return (HarnessTasks(tokenizer, evaluation.harness_tasks, path, evaluation.batch_size, evaluation.harness_limit),)


def _require_there(path: Path, key: str, config: Config) -> None:
    """Refuse a path below `data.path` that was meant for it: these keys were once relative to that directory."""
    if path.exists():
        return
    ends = (Path(*path.parts[-count:]) for count in range(1, len(path.parts)))
    found = next((old for end in ends if (old := Path(config.data.path, end)).exists()), None)
    advice = f"there is {found}: paths are relative to the file that says them, not to data.path" if found else ""
    raise MissingInputError(
        f"evaluation.{key}: expected something at {path}, found nothing; {advice or 'check the path'}"
    )
