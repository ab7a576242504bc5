"""What ``florist init`` does, once its arguments are known to be right."""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florist.cli.libraries import load_training_libraries
from florist.config.drafting import draft
from florist.config.presets import set_ups
from florist.config.sections import CLASSIFICATION
from florist.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from florist.config.surveying import DataLook, ModelLook

Ask = Callable[[str, str | None], str]
"""Asks a question with the answer that is proposed, if one is, and returns the answer."""

_RANK, _CLIENTS, _ROUNDS, _MAX_LENGTH = 16, 4, 3, 512


@dataclass(frozen=True, slots=True)
class Options:
    """What the options of the command say; None for what they do not say.

    The fields are called as the options.
    """

    model: str | None = None
    data: Path | None = None
    clients: int | None = None
    ranks: tuple[int, ...] | None = None
    rounds: int | None = None
    partition_field: str | None = None
    instruction_field: str | None = None
    input_field: str | None = None
    output_field: str | None = None
    label_field: str | None = None
    text_field: str | None = None


def preset_names() -> list[tuple[str, str]]:
    """The names of the set-ups, and what they are."""
    return [(name, each.about) for name, each in set_ups().items()]


def from_preset(name: str, options: Options, out: Path) -> str:
    """The text of a set-up, with another model or other data if they are given.

    Raises:
        ConfigurationError: there is no such set-up, or an option is given that it does not take.
    """
    known = set_ups()
    if name not in known:
        raise ConfigurationError(f"--preset: expected one of {', '.join(known)}, or list, got {name!r}")
    foreign = [
        f"--{field.name.replace('_', '-')}"
        for field in fields(options)
        if field.name not in {"model", "data"} and getattr(options, field.name) is not None
    ]
    if foreign:
        raise ConfigurationError(
            f"--preset takes --model and --data beside it, got {', '.join(foreign)}: change the file instead, or add "
            "--set to florist simulate"
        )
    chosen = known[name]
    tables: dict[str, dict[str, Any]] = {section: dict(table) for section, table in chosen.tables.items()}
    if options.model is not None:
        tables["model"]["name_or_path"] = _seen_from(out, options.model)
    if options.data is not None:
        tables["data"]["path"] = _seen_from(out, str(options.data))
    return draft(tables, _title(out, f"The set-up {name}: {chosen.about}."), chosen.notes)


def surveyed(options: Options, out: Path, ask: Ask | None) -> str:
    """The text of a configuration for a model and its examples.

    Args:
        options: what is known.
        out: the file that it is for, to which paths in it are relative.
        ask: asks for what is not known; None where what is proposed is taken.

    Raises:
        ConfigurationError: something that cannot be proposed is not known, or options contradict what is there.
        ModelError, MissingInputError, DataError: model or data cannot be looked at.
    """
    name = options.model or _answer(ask, "The base model: a directory, or a hub id", None, "--model")
    place = str(options.data or _answer(ask, "The directory of the examples, or a file of them", None, "--data"))

    load_training_libraries("init")
    from florist.config.surveying import look_at_data, look_at_model  # noqa: PLC0415  # needs these libraries

    model, data = look_at_model(name), look_at_data(Path(place))
    ranks = options.ranks or numbers(
        _answer(ask, "The rank of all clients, or one each as 64,32", str(_RANK)), "--ranks"
    )
    folder = place if Path(place).resolve() == data.folder.resolve() else str(Path(place).parent)
    tables: dict[str, dict[str, Any]] = {
        "model": {"name_or_path": _seen_from(out, name)},
        "task": {},
        "data": {"path": _seen_from(out, folder), "train": data.train},
        "lora": {"ranks": ranks[0] if len(ranks) == 1 else list(ranks), "target_modules": "all-linear"},
        "training": {"learning_rate": 3e-4, "batch_size": 8},
        "federation": {"rounds": options.rounds or _ROUNDS},
    }
    for held_out in ("test", "validation"):
        if (file := getattr(data, held_out)) is not None:
            tables["data"][held_out] = file
    tables["data"] |= _fields(options, data, ask) | _sharing(options, data, ranks, ask)
    tables["data"]["max_length"] = min(_MAX_LENGTH, model.max_length or _MAX_LENGTH)
    if options.label_field is not None:
        tables["task"]["kind"] = CLASSIFICATION
    return draft(tables, _title(out), _notes(model, data))


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Read whole numbers with commas between them.

    Raises:
        ConfigurationError: the text is something else.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigurationError(f"expected {option} as 16, or as 64,32,16 with one a client, got {text!r}") from error


def _fields(options: Options, data: "DataLook", ask: Ask | None) -> dict[str, str]:
    """Which fields of the examples hold what."""
    given = {
        key: value
        for key in ("instruction_field", "input_field", "output_field", "label_field")
        if (value := getattr(options, key)) is not None
    }
    if options.text_field is not None:
        given["prompt_template"] = f"{{{options.text_field}}}"
    if not given and data.shape is None:
        there = f"The examples have the fields {', '.join(data.fields)}"
        given = {
            "instruction_field": _answer(ask, f"{there}. Which one is the instruction", None, "--instruction-field"),
            "output_field": _answer(ask, "Which one is the answer", None, "--output-field, or --label-field"),
        }
    named = [value for key, value in given.items() if key.endswith("_field")]
    named += [] if options.text_field is None else [options.text_field]
    unknown = [name for name in named if name not in data.fields]
    if unknown:
        raise DataError(f"expected fields of the examples, {', '.join(data.fields)}, got {', '.join(unknown)}")
    return given


def _sharing(options: Options, data: "DataLook", ranks: tuple[int, ...], ask: Ask | None) -> dict[str, Any]:
    """Which client has which examples."""
    field = options.partition_field
    if data.clients > 1 and field is None:
        asked = {options.clients or data.clients, len(ranks) if len(ranks) > 1 else data.clients}
        if asked != {data.clients}:
            raise ConfigurationError(
                f"expected the {data.clients} clients whose files {data.train} are in {data.folder}, got "
                f"--clients {options.clients} and {len(ranks)} ranks; give --partition-field to share the examples out "
                "otherwise"
            )
        return {"partition": "given"}
    count = options.clients or (len(ranks) if len(ranks) > 1 else None)
    if count is None:
        count = numbers(_answer(ask, "How many clients share the examples", str(_CLIENTS)), "--clients")[0]
    if count > data.examples:
        raise ConfigurationError(
            f"--clients: expected at most the {data.examples} examples that they share, got {count}"
        )
    if field is None and ask is not None and options.label_field is None and data.kinds:
        question = f"A field in which clients are unlike ({', '.join(data.kinds)}), or none"
        field = ask(question, "none")
    if field in {None, "none"}:
        return {"partition": "iid", "num_clients": count}
    if field not in data.fields:
        raise DataError(f"--partition-field: expected a field of the examples, {', '.join(data.fields)}, got {field!r}")
    return {"partition": "dirichlet", "partition_field": field, "num_clients": count}


def _notes(model: "ModelLook", data: "DataLook") -> dict[str, str]:
    kinds = "; ".join(f"{name} has {count} values" for name, count in data.kinds.items())
    where = "1 file" if data.clients == 1 else f"{data.clients} files"
    return {
        "model.name_or_path": f"It is a {model.architecture}.",
        "data.path": f"There are {data.examples} training examples in {where}, with {', '.join(data.fields)}.",
        "data.partition_field": f"Here, {kinds}." if kinds else "",
        "data.format": f"Here, it is {data.shape}." if data.shape else "",
        "data.chat_template": f"This tokenizer has {'one' if model.chat_template else 'none'}.",
        "lora.target_modules": f"This model has {', '.join(model.linear_modules)}.",
    }


def _title(out: Path, *about: str) -> list[str]:
    return [
        f"Written by florist init. To play it: florist simulate {out.name}",
        *about,
        "Relative paths are relative to this file. Keys after a # without a space are not set: they show what holds.",
    ]


def _seen_from(out: Path, place: str) -> str:
    """A path as the file says it; a hub id, or an absolute path, as it is."""
    if Path(place).is_absolute() or not Path(place).exists():
        return place
    return Path(os.path.relpath(Path(place).resolve(), out.absolute().parent.resolve())).as_posix()


def _answer(ask: Ask | None, question: str, proposed: str | None, option: str = "") -> str:
    if ask is not None:
        return ask(question, proposed)
    if proposed is None:
        raise ConfigurationError(f"expected {option} with --yes, since nothing can be proposed for it. {question}?")
    return proposed
