"""Reading files of examples: JSON and JSONL here, tables in `tables`."""

import json
import os
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from florist.data.fields import PlacedExample
from florist.data.tables import read_csv, read_dataset, read_parquet, text_of_file
from florist.errors import DataError, MissingInputError, UnreadableFileError
from florist.files.reading import require_regular

Example = Mapping[str, Any]
"""One example of a data file: a JSON object, or a row of a table by the names of its columns."""

_TABLES: Mapping[str, Callable[[Path], Sequence[Example]]] = {".csv": read_csv, ".parquet": read_parquet}


_BLANKS = re.compile(r"[ \t\n]*")


def read_examples(path: Path) -> list[Example]:
    """Read the examples of a file by its ending, or of a directory that ``datasets.Dataset.save_to_disk`` wrote.

    A ``.json`` file holds one list, a ``.jsonl`` file one object a line, a ``.csv`` file the names of the fields in its
    first line; there is ``.parquet`` as well. The examples know where they were read (`fields.PlacedExample`).

    A pipe is refused: examples are read again when a run is resumed.

    Raises:
        MissingInputError: There is no such file.
        DataError: The path leads to something else than a file. The file is not what its ending says, does not hold a
            list of objects, or holds no example.
        MissingDependencyError: The file takes packages of the extra ``data``, which are not installed.
    """
    if not os.path.exists(path):  # noqa: PTH110  # unlike Path.exists, it tells of a name that cannot be as of none
        raise MissingInputError(f"expected a data file at {path}, found none; check [data] path and the file names")
    if path.is_dir():
        found: Any = read_dataset(path)
    else:
        try:
            require_regular(path)
            found = _TABLES.get(path.suffix.lower(), _read_json)(path)
        except UnreadableFileError as error:
            raise DataError(f"{error}; florist reads examples more than once") from error
    if not found and (path.is_dir() or path.suffix.lower() in _TABLES):
        raise DataError(f"{path}: expected at least one example, got an empty table")
    if not isinstance(found, list) or not found:
        raise _no_examples(path, _described(found))
    return found


def _read_json(path: Path) -> Any:
    try:
        # All line ends become those of Unix, so that lines are counted as editors count them.
        text = text_of_file(path).replace("\r\n", "\n").replace("\r", "\n")
        return list(_lines(path, text)) if path.suffix.lower() == ".jsonl" else _list(path, text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path}: expected UTF-8 JSON, and reading failed: {error}; "
            "a .json file holds one list, a .jsonl file one object a line"
        ) from error


def _lines(path: Path, text: str) -> Iterator[PlacedExample]:
    start = 0
    # str.splitlines would also split at U+2028 and others, which may stand in a JSON string as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                example = _decoded(path, number, json.loads, line)
            except json.JSONDecodeError as error:
                # With the whole text, the message counts the lines of the file.
                raise json.JSONDecodeError(error.msg, text, start + error.pos) from error
            if not isinstance(example, dict):
                raise _no_examples(path, f"{reprlib.repr(example)} in line {number}")
            yield PlacedExample(example, str(path), number)
        start += len(line) + 1


def _list(path: Path, text: str) -> Any:
    """The examples of a list, each with the line that it begins in; or else whatever the text holds."""
    place, decoder, line, end = _after_blanks(text, 0), json.JSONDecoder(), 1, 0
    if text[place : place + 1] != "[":
        return _decoded(path, 1, json.loads, text)
    examples: list[PlacedExample] = []
    place = _after_blanks(text, place + 1)
    while text[place : place + 1] != "]" or examples:
        line, end = line + text.count("\n", end, place), place
        example, place = _decoded(path, line, decoder.raw_decode, text, place)
        if not isinstance(example, dict):
            raise _no_examples(path, f"{reprlib.repr(example)} as example {len(examples) + 1}, in line {line}")
        examples.append(PlacedExample(example, str(path), line, example=len(examples) + 1))
        place = _after_blanks(text, place)
        if text[place : place + 1] == "]":
            break
        if text[place : place + 1] != ",":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
        place = _after_blanks(text, place + 1)
    place = _after_blanks(text, place + 1)
    if place < len(text):
        raise json.JSONDecodeError("Extra data", text, place)
    return examples


def _after_blanks(text: str, place: int) -> int:
    found = _BLANKS.match(text, place)
    return found.end() if found is not None else place


def _decoded(path: Path, line: int, decode: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return decode(*arguments)
    except RecursionError as error:
        raise DataError(
            f"{path}, line {line}: expected lists and objects that are nested a few times, got hundreds in each other; "
            "remove the example"
        ) from error
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError):
            raise
        raise DataError(
            f"{path}, line {line}: expected numbers of at most 4300 digits, got a longer one; write it as a text"
        ) from error


def _described(found: Any) -> str:
    if isinstance(found, dict):
        return f"an object with the keys {reprlib.repr(list(found))}"
    return "an empty list" if isinstance(found, list) else reprlib.repr(found)


def _no_examples(path: Path, got: str) -> DataError:
    return DataError(f"{path}: expected a non-empty list of JSON objects, one an example, got {got}")
