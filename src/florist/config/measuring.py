"""A saved adapter, or the base alone, measured as a configuration says: on its held-out examples or on any file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from florist.checkpoint import SavedAdapter
from florist.checkpoint.layout import ExpertLayout
from florist.config.building import load_base
from florist.config.metrics import harness, metric_names, metrics_on
from florist.config.sections import CLASSIFICATION, FROM_CODE, Config
from florist.config.splits import read_splits
from florist.config.tasks import Task
from florist.data.fields import place_of
from florist.data.reading import Example, read_examples
from florist.errors import ConfigurationError, IncompatibleAdaptersError
from florist.evaluation import Measurements, Metric

Split = Literal["test", "validation", "train"]
_OF_FILE = frozenset({"multiple_choice"})
"""Metrics with questions of their own, which are the same for every client."""


@dataclass(frozen=True, slots=True)
class ToMeasure:
    """The examples to measure on.

    Attributes:
        source: where they are from, in words.
        examples: all of them.
        by_client: the same by client; None where they were not asked for so.
    """

    source: str
    examples: Sequence[Example]
    by_client: Mapping[str, Sequence[Example]] | None


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one model.

    Attributes:
        metrics: on all examples.
        by_client: on those of each client; empty where they were not asked for.
    """

    metrics: Measurements
    by_client: Mapping[str, Measurements]


def examples_of(config: Config, split: Split, *, by_client: bool) -> ToMeasure:
    """The examples of a split.

    By client they are the training examples that the partition gave it, or those of its own that were held out. Of a
    held-out file that all clients share, nobody knows whose the examples are, unless the partition is by a field.

    Raises:
        ConfigurationError: there is no such split, or it cannot be told by client.
        MissingInputError, DataError: a file is missing or is not what it should be.
    """
    data = config.data
    if split == "validation" and not config.has_validation:
        raise ConfigurationError(
            "expected validation examples, and the configuration has none: set data.validation or "
            "data.validation_fraction, or measure on --split test or train"
        )
    if data.path == FROM_CODE:
        raise ConfigurationError(
            "the examples of this run were objects, which code gave: give a file of examples with --data FILE"
        )
    file = {"test": data.test, "validation": data.validation, "train": None}[split]
    if file is not None:
        return examples_of_file(config, Path(data.path, file), by_client=by_client)
    splits = read_splits(config)
    if split == "train":
        every = [example for own in splits.training.values() for example in own]
        return ToMeasure("the training examples", every, splits.training if by_client else None)
    held_out = splits.test if split == "test" else splits.validation
    found: dict[str, Sequence[Example]] = {}
    for number, client_id in enumerate(splits.training) if by_client else ():
        own = read_splits(config, choose=lambda names, number=number: names[number])
        found[client_id] = own.test if split == "test" else own.validation
    return ToMeasure(f"the {split} examples", held_out, found if by_client else None)


def examples_of_file(config: Config, file: Path, *, by_client: bool) -> ToMeasure:
    """The examples of a file; by client for a partition by a field, whose values are the clients.

    Raises:
        ConfigurationError: nobody knows which client has which examples.
        MissingInputError, DataError: the file is missing or is not what it should be.
    """
    examples = read_examples(file)
    if not by_client:
        return ToMeasure(str(file), examples, None)
    data = config.data
    field = data.partition_field
    if data.partition != "by-field" or field is None or data.num_clients is not None:
        raise ConfigurationError(
            f"--by-client: expected examples of which it is known whose they are, and all clients share {file}; "
            "measure --split train, hold out by data.test_fraction without a file, or partition = 'by-field'"
        )
    found: dict[str, list[Example]] = {}
    for example in examples:
        if field not in example:
            raise ConfigurationError(
                f"--by-client: expected {field!r} in every example, and it is not in {place_of(example, str(file))}"
            )
        found.setdefault(str(example[field]), []).append(example)
    return ToMeasure(str(file), examples, dict(sorted(found.items())))


def measure(
    config: Config,
    to_measure: ToMeasure,
    adapter: SavedAdapter | None,
    *,
    base: bool,
    told: Callable[[str], None] = lambda _: None,
) -> tuple[Measured | None, Measured | None]:
    """Measure an adapter and the base alone by the metrics of ``[evaluation]``.

    PEFT itself loads the adapter, so that any adapter can be measured that PEFT loads on this base.

    Args:
        config: names the base, the task and the metrics. How a run of it trains and aggregates does not matter.
        to_measure: the examples.
        adapter: the adapter; None for the base alone.
        base: whether to measure the base alone, too.
        told: is told what is being done.

    Returns:
        What was measured of the adapter, and of the base; None for what was not.

    Raises:
        ConfigurationError: the task has no such metric, or keys contradict what is in the examples.
        DataError: the examples have no known shape.
        ModelError, UnsupportedHardwareError, MissingDependencyError: the base cannot be loaded here.
        IncompatibleAdaptersError: the adapter is for another task, or another base.
    """
    if adapter is not None:
        _require_task(config, adapter)
    metric_names(config)
    told("loading the model")
    tokenizer, task = load_base(config, _telling(config, to_measure))
    metrics = _metrics(config, to_measure, task, tokenizer)
    of_base = None
    if base or adapter is None:
        of_base = _measured(task.base, metrics, told, "the base")
    if adapter is None:
        return None, of_base
    model = _adapted(config, task, adapter)
    return _measured(model, metrics, told, "the adapter"), of_base


def _require_task(config: Config, adapter: SavedAdapter) -> None:
    expected = "SEQ_CLS" if config.task.kind == CLASSIFICATION else "CAUSAL_LM"
    if adapter.task_type not in {None, expected}:
        raise IncompatibleAdaptersError(
            f"{adapter.path}: expected an adapter for {expected}, as task.kind = {config.task.kind!r} says, got one "
            f"for {adapter.task_type}; measure it with a configuration of its task"
        )


def _telling(config: Config, to_measure: ToMeasure) -> Sequence[Example]:
    """The examples that tell the shape of all, or the classes: a file may lack some classes that training has."""
    if config.task.kind != CLASSIFICATION or config.task.labels is not None:
        return to_measure.examples
    return [example for own in read_splits(config).training.values() for example in own]


_ByGroup = Mapping[str | None, Sequence[Metric]]
"""The metrics of each client, and of all examples under None."""


def _metrics(config: Config, to_measure: ToMeasure, task: Task, tokenizer: PreTrainedTokenizerBase) -> _ByGroup:
    names = metric_names(config)
    whole = metrics_on(config, names, task.encode_held_out(to_measure.examples, to_measure.source), tokenizer)
    found: dict[str | None, Sequence[Metric]] = {None: (*whole, *harness(config, tokenizer))}
    own_names = [name for name in names if name not in _OF_FILE]
    for client_id, examples in (to_measure.by_client or {}).items():
        encoded = task.encode_held_out(examples, f"the examples of {client_id}")
        found[client_id] = metrics_on(config, own_names, encoded, tokenizer)
    return found


def _measured(model: object, metrics: _ByGroup, told: Callable[[str], None], what: str) -> Measured:
    found: dict[str | None, Measurements] = {}
    for client_id, own in metrics.items():
        told(f"evaluating {what}" + (f" for {client_id}" if client_id is not None else ""))
        found[client_id] = Measurements.together(metric(model) for metric in own)
    return Measured(found[None], {name: each for name, each in found.items() if name is not None})


def _adapted(config: Config, task: Task, adapter: SavedAdapter) -> PeftModel:
    base = config.model.name_or_path
    there = dict(task.base.named_modules())
    strange = [
        name
        for name in adapter.adapter
        if name not in there and not isinstance(adapter.layout.module(name), ExpertLayout)
    ]
    if strange:
        raise IncompatibleAdaptersError(
            f"{adapter.path}: expected an adapter of modules of {base}, which lacks {len(strange)} of them, "
            f"{strange[0]} for instance; it was trained on {adapter.base_model or 'a base that it does not name'}: "
            "name that in [model]"
        )
    folder = adapter.weights_path.parent
    try:
        return PeftModel.from_pretrained(task.base, str(folder))
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise IncompatibleAdaptersError(
            f"{adapter.path}: expected an adapter that PEFT loads on {base}, and it refuses: {reason}; name the model "
            "that was adapted in [model]"
        ) from error
