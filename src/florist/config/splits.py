"""Which records a configuration trains on, validates on and tests on, and who holds them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from florist.config.sections import Config, as_slice
from florist.data import Example, read_examples
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
from florist.errors import ConfigurationError, DataError, MissingInputError

ClientExamples = dict[str, list[Example]]


@dataclass(frozen=True, slots=True)
class Splits:
    """The records of a configuration; no record is in two of the three.

    Attributes:
        training: client -> its rows, in the order of the clients.
        validation: to choose by; may be empty.
        test: held out.
    """

    training: Mapping[str, list[Example]]
    validation: Sequence[Example]
    test: Sequence[Example]


def read_splits(config: Config, choose: Callable[[Sequence[str]], str] | None = None) -> Splits:
    """Read the files, share the rows out and hold some out.

    Args:
        config: where they are and how to share them.
        choose: one of the clients' names: the others' rows are left alone, those held out as well.

    Raises:
        ConfigurationError: keys contradict what is in the data.
        MissingInputError, DataError: a file is missing or is not what it should be.
    """
    data = config.data
    part = as_slice(data.rows) if data.rows is not None else None
    rows = {name: list(read_examples(file))[part or slice(None)] for name, file in _training_files(config).items()}
    empty = [name for name, some in rows.items() if not some]
    if empty:
        raise ConfigurationError(f"data.rows = {data.rows!r} leaves no rows of {empty}")
    if data.partition == "given":
        holdings = rows
    else:
        holdings = _share_out(config, [row for some in rows.values() for row in some])
    if choose is not None:
        client_id = choose(list(holdings))
        holdings = {client_id: holdings[client_id]}
    if data.test is not None:
        test = read_examples(Path(data.path, data.test))
    else:
        holdings, test = _held_out(config, holdings, data.test_fraction, "test")
    if data.validation is not None:
        return Splits(holdings, read_examples(Path(data.path, data.validation)), test)
    if data.validation_fraction is not None:
        holdings, validation = _held_out(config, holdings, data.validation_fraction, "validation")
        return Splits(holdings, validation, test)
    return Splits(holdings, [], test)


def read_held_out(config: Config) -> Splits:
    """The records to measure on, where no training records are needed, nor there: a server's.

    Raises:
        ConfigurationError, MissingInputError, DataError: as `read_splits`.
    """
    data = config.data
    if data.test is None:
        return replace(read_splits(config), training={})
    validation = read_examples(Path(data.path, data.validation)) if data.validation is not None else []
    return Splits({}, validation, read_examples(Path(data.path, data.test)))


def who_holds_what(config: Config, splits: Splits) -> LabelCounts | None:
    """Training rows of every client by the field that makes clients unlike.

    That field is the partition's, else the class's, else Dolly's ``category``; None where a row has no such field.
    """
    field = config.data.partition_field or config.data.label_field or "category"
    if any(field not in row for rows in splits.training.values() for row in rows):
        return None
    return count_labels({client: [str(row[field]) for row in rows] for client, rows in splits.training.items()})


# Another draw than the test's, whose rows stay what they are without a validation set.
_DRAWS = {"test": "hold out", "validation": "hold out for validation"}


def _held_out(
    config: Config, holdings: ClientExamples, fraction: float, what: str
) -> tuple[ClientExamples, list[Example]]:
    kept: ClientExamples = {}
    held_out: list[Example] = []
    for client_id, own in holdings.items():
        try:
            training, held = hold_out(len(own), fraction, config.federation.seed, _DRAWS[what])
        except DataError as error:
            raise DataError(f"{client_id}: {error}; give it more, or {what} records with [data] {what}") from error
        kept[client_id] = [own[i] for i in training]
        held_out += [own[i] for i in held]
    return kept, held_out


def _training_files(config: Config) -> dict[str, Path]:
    """Name of a client -> its file, in the natural order of the names: 9 before 10."""
    data, folder = config.data, Path(config.data.path)
    if not folder.is_dir():
        raise MissingInputError(f"expected the data directory {folder}, found none; set it with --set data.path=DIR")
    try:
        found = [file for file in folder.glob(data.train) if file.is_file()]
    except (ValueError, NotImplementedError) as error:
        raise ConfigurationError(
            f"data.train = {data.train!r}: expected a file name or pattern in data.path, and it is none: {error}"
        ) from error
    held_out = {(folder / name).resolve() for name in (data.test, data.validation) if name is not None}
    files: dict[str, Path] = {}
    for file in sorted(found):
        if file.resolve() in held_out:
            continue
        name = file.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise ConfigurationError(
                f"data.train = {data.train!r}: expected one file a client, got {files[name].name} and {file.name}; "
                "name one ending"
            )
        files[name] = file
    if not files:
        raise MissingInputError(f"expected training files {data.train} in {folder}, found none; set [data] train")
    return dict(sorted(files.items(), key=lambda item: _natural(item[0])))


def _natural(name: str) -> list[str | int]:
    # Text and numbers take turns, so that like is compared with like.
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"(\d+)", name))]


def _share_out(config: Config, rows: list[Example]) -> ClientExamples:
    data, ranks = config.data, config.lora.ranks
    field = data.partition_field
    lacking = next((row for row in rows if field is not None and field not in row), None)
    if lacking is not None:
        raise ConfigurationError(
            f"data.partition_field = {field!r}: expected it in every record, got {sorted(lacking)}"
        )
    labels = [str(row[field]) if field is not None else "" for row in rows]
    values = len(set(labels))
    num_clients = data.num_clients or (len(ranks) if isinstance(ranks, tuple) else values)
    # A client that holds some rows out itself needs another to train on.
    min_examples = 1 + (data.test is None) + (data.validation_fraction is not None)
    partitioners: Mapping[str, Partitioner] = {
        "iid": iid,
        "dirichlet": partial(dirichlet, alpha=data.dirichlet_alpha, min_examples=min_examples),
        "shards": partial(shards, shards_per_client=data.shards_per_client or 2),
        "by-field": _by_field,
    }
    shares = partitioners[data.partition](labels, num_clients, config.federation.seed)
    width = len(str(num_clients - 1))
    if data.partition == "by-field" and num_clients == values:
        return {labels[share[0]]: [rows[i] for i in share] for share in shares}
    names = [f"client_{k:0{width}d}" for k in range(num_clients)]
    return {name: [rows[i] for i in share] for name, share in zip(names, shares, strict=True)}


def _by_field(labels: Sequence[object], num_clients: int, seed: int) -> Partition:  # noqa: ARG001  # nothing is drawn
    return by_field(labels, num_clients)
