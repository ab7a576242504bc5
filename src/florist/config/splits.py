"""The examples that a configuration trains on, validates on and tests on, and the clients that they belong to."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from florist.config.sections import Config, as_slice
from florist.data.fields import listed, place_of, text_of
from florist.data.partition import (
    LabelCounts,
    Partition,
    Partitioner,
    by_field,
    count_labels,
    dirichlet,
    hold_out,
    iid,
    shards,
)
from florist.data.reading import Example, read_examples
from florist.data.tables import is_dataset
from florist.errors import ConfigurationError, DataError, MissingInputError

ClientExamples = dict[str, list[Example]]


@dataclass(frozen=True, slots=True)
class Splits:
    """The examples of a configuration; no example is in two of the three.

    Attributes:
        training: the training examples by client, in the order of the clients.
        validation: the examples to choose by; there may be none.
        test: the held-out examples.
        validation_by_client: those of the validation examples that a client held out of its own, by client.
        test_by_client: those of the test examples that a client held out of its own, by client.
    """

    training: Mapping[str, list[Example]]
    validation: Sequence[Example]
    test: Sequence[Example]
    validation_by_client: Mapping[str, Sequence[Example]] = field(default_factory=dict[str, Sequence[Example]])
    test_by_client: Mapping[str, Sequence[Example]] = field(default_factory=dict[str, Sequence[Example]])


HeldOut = Sequence[Example] | Mapping[str, Sequence[Example]]
"""Examples that nobody trains on, whose they are or not."""


def read_splits(config: Config, choose: Callable[[Sequence[str]], str] | None = None) -> Splits:
    """Read the files, share the examples out and hold some of them out.

    Args:
        config: says where the files are and how their examples are shared.
        choose: picks one client by its name; the examples of all others are then left alone, those that are held out
            as well. By default all clients are read.

    Raises:
        ConfigurationError: keys contradict what is in the data.
        MissingInputError, DataError: a file is missing or is not what it should be.
    """
    data = config.data
    part = as_slice(data.rows) if data.rows is not None else None
    by_file = {name: list(read_examples(file))[part or slice(None)] for name, file in _training_files(config).items()}
    empty = [name for name, examples in by_file.items() if not examples]
    if empty:
        raise ConfigurationError(f"data.rows = {data.rows!r} leaves no examples of {listed(empty)}")
    if data.partition == "given":
        by_client = by_file
    else:
        by_client = _share_out(config, [example for examples in by_file.values() for example in examples])
    short = {name: len(own) for name, own in by_client.items() if len(own) < (data.min_examples or 1)}
    if short:
        raise DataError(
            f"data.min_examples = {data.min_examples}: expected so many examples of every client, got "
            f"{_counted(short)}; share them out otherwise, among fewer clients, or lower min_examples"
        )
    if choose is not None:
        client_id = choose(list(by_client))
        by_client = {client_id: by_client[client_id]}
    test = read_examples(Path(data.path, data.test)) if data.test is not None else None
    validation = read_examples(Path(data.path, data.validation)) if data.validation is not None else None
    return split(config, by_client, test, validation)


def split(
    config: Config, by_client: ClientExamples, test: HeldOut | None = None, validation: HeldOut | None = None
) -> Splits:
    """Hold some of every client's examples out, as far as none are given that nobody trains on.

    Args:
        config: says which fractions are held out, and the seed.
        by_client: the examples of every client.
        test: the test examples; by default a fraction of every client's.
        validation: the validation examples; by default the configured fraction of every client's, or none.

    Raises:
        DataError: a client has too few examples.
    """
    fraction = config.data.validation_fraction
    if test is None:
        by_client, test = _held_out(config, by_client, config.data.test_fraction, "test")
    if validation is None and fraction is not None:
        by_client, validation = _held_out(config, by_client, fraction, "validation")
    (chosen_by, chosen_by_client), (tested, tested_by_client) = _whose(validation or []), _whose(test)
    return Splits(by_client, chosen_by, tested, chosen_by_client, tested_by_client)


def _whose(held_out: HeldOut) -> tuple[Sequence[Example], Mapping[str, Sequence[Example]]]:
    if isinstance(held_out, Mapping):
        return [example for own in held_out.values() for example in own], held_out
    return held_out, {}


def read_held_out(config: Config) -> Splits:
    """Read the examples that a server measures on; with a test file, the clients' own files need not be there.

    Raises:
        ConfigurationError: the rounds are measured on validation examples, and the clients alone have them; or as
            `read_splits`.
        MissingInputError, DataError: as `read_splits`.
    """
    data = config.data
    if data.test is None:
        return replace(read_splits(config), training={})
    if data.validation_fraction is not None and config.evaluation.split != "test":
        # Metrics of the test examples in every round would make them examples to choose by, without a word.
        raise ConfigurationError(
            f"data.validation_fraction = {data.validation_fraction}: expected validation examples at the server, which "
            "measures the rounds, and a fraction of the clients' examples is with the clients; set data.validation to "
            "a file that the server has, or evaluation.split = 'test' to measure the rounds on the test file"
        )
    validation = read_examples(Path(data.path, data.validation)) if data.validation is not None else []
    return Splits({}, validation, read_examples(Path(data.path, data.test)))


def read_validation(config: Config) -> Splits:
    """Read the examples to choose by; where they are a file, nothing else is read, nor needs to be there.

    Raises:
        ConfigurationError, MissingInputError, DataError: as `read_splits`.
    """
    data = config.data
    if data.validation is None:
        return read_splits(config)
    return Splits({}, read_examples(Path(data.path, data.validation)), [])


def who_has_which(config: Config, splits: Splits) -> LabelCounts | None:
    """Count the training examples of every client by the field that makes clients unlike.

    The field is that of the partition, or else that of the class, or else Dolly's ``category``. The result is None
    where an example has no such field.
    """
    field = config.data.partition_field or config.data.label_field or "category"
    if any(field not in example for examples in splits.training.values() for example in examples):
        return None
    return count_labels(
        {client: [str(example[field]) for example in examples] for client, examples in splits.training.items()}
    )


def few_examples(config: Config, splits: Splits) -> str | None:
    """What to tell of clients that got fewer training examples than one batch holds where examples are shared out.

    None where no client did, or where the files are the clients, whose sizes are their own.
    """
    size = config.training.batch_size
    sizes = size if isinstance(size, tuple) else (size,) * len(splits.training)
    least = {name: len(own) for (name, own), n in zip(splits.training.items(), sizes, strict=False) if len(own) < n}
    if config.data.partition == "given" or not least:
        return None
    return (
        f"few examples to train on: {_counted(least)}, less than a batch of training.batch_size = {size}; [data] "
        "min_examples sets how many a client has at least"
    )


def _counted(sizes: Mapping[str, int], most: int = 5) -> str:
    shown = sorted(sizes.items(), key=lambda item: item[1])
    rest = f" and {len(shown) - most} others" if len(shown) > most else ""
    return ", ".join(f"{name} with {count}" for name, count in shown[:most]) + rest


# The two draws differ, so that the test examples are the same with a validation set and without one.
_DRAWS = {"test": "hold out", "validation": "hold out for validation"}


def _held_out(
    config: Config, by_client: ClientExamples, fraction: float, what: str
) -> tuple[ClientExamples, ClientExamples]:
    kept: ClientExamples = {}
    held_out: ClientExamples = {}
    for client_id, own in by_client.items():
        try:
            training, held = hold_out(len(own), fraction, config.federation.seed, _DRAWS[what])
        except DataError as error:
            raise DataError(
                f"{client_id}: {error}; give it more, or set [data] {what} to a file of {what} examples"
            ) from error
        kept[client_id] = [own[i] for i in training]
        held_out[client_id] = [own[i] for i in held]
    return kept, held_out


def _training_files(config: Config) -> dict[str, Path]:
    """The files by the names of their clients, in the natural order of the names, 9 before 10."""
    data, folder = config.data, Path(config.data.path)
    if not folder.is_dir():
        raise MissingInputError(f"expected the data directory {folder}, found none; set it with --set data.path=DIR")
    try:
        found = [file for file in folder.glob(data.train) if file.is_file() or is_dataset(file)]
    except (ValueError, NotImplementedError) as error:
        raise ConfigurationError(
            f"data.train = {data.train!r}: expected a file name or pattern in data.path, and it is none: {error}"
        ) from error
    held_out = {(folder / name).resolve() for name in (data.test, data.validation) if name is not None}
    files: dict[str, Path] = {}
    for file in sorted(found):
        if file.resolve() in held_out:
            continue
        whole = file.relative_to(folder)
        name = (whole if file.is_dir() else whole.with_suffix("")).as_posix()
        if name in files:
            raise ConfigurationError(
                f"data.train = {data.train!r}: expected one file a client, got {files[name].name} and {file.name}; "
                "name one ending"
            )
        files[name] = file
    if not files and found:
        names = ", ".join(f"data.{key}" for key in ("test", "validation") if getattr(data, key) is not None)
        raise ConfigurationError(
            f"data.train = {data.train!r}: expected files to train on, got none but what {names} names, which are held "
            "out; name other files, or hold a part out with test_fraction and validation_fraction"
        )
    if not files:
        raise MissingInputError(
            f"expected training files {data.train} in {folder}, found none among {_shown(folder)}; set [data] train"
        )
    return dict(sorted(files.items(), key=lambda item: _natural(item[0])))


def _shown(folder: Path, most: int = 5) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "no files"


def _natural(name: str) -> list[str | int]:
    # Text and numbers take turns, so that like is compared with like.
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"(\d+)", name))]


def _share_out(config: Config, examples: list[Example]) -> ClientExamples:
    data, ranks = config.data, config.lora.ranks
    field = data.partition_field
    labels = [_value_of(example, field) if field is not None else "" for example in examples]
    values = len(set(labels))
    num_clients = data.num_clients or (len(ranks) if isinstance(ranks, tuple) else values)
    # A client that holds an example out needs another to train on.
    min_examples = max(1 + (data.test is None) + (data.validation_fraction is not None), data.min_examples or 1)
    partitioners: Mapping[str, Partitioner] = {
        "iid": iid,
        "dirichlet": partial(dirichlet, alpha=data.dirichlet_alpha, min_examples=min_examples),
        "shards": partial(shards, shards_per_client=data.shards_per_client or 2),
        "by-field": _by_field,
    }
    shares = partitioners[data.partition](labels, num_clients, config.federation.seed)
    width = len(str(num_clients - 1))
    if data.partition == "by-field" and num_clients == values:
        return {labels[share[0]]: [examples[i] for i in share] for share in shares}
    names = [f"client_{k:0{width}d}" for k in range(num_clients)]
    return {name: [examples[i] for i in share] for name, share in zip(names, shares, strict=True)}


def _value_of(example: Example, field: str) -> str:
    if field not in example:
        raise ConfigurationError(
            f"data.partition_field = {field!r}: expected it in every example, got {listed(example)} at "
            f"{place_of(example, 'one of them')}"
        )
    try:
        return text_of(example, field) if example[field] is not None else str(None)
    except DataError as error:
        raise DataError(f"{place_of(example, f'data.partition_field = {field!r}')}: {error}") from error


def _by_field(labels: Sequence[object], num_clients: int, seed: int) -> Partition:  # noqa: ARG001  # nothing is drawn
    return by_field(labels, num_clients)
