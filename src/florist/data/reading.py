"""Reading files of examples: JSON and JSONL here, tables in `tables`."""

import json
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from florist.data.tables import read_csv, read_dataset, read_parquet
from florist.errors import DataError, MissingInputError

Example = Mapping[str, Any]
"""One example of a data file: a JSON object, or a row of a table by the names of its columns."""

_TABLES: Mapping[str, Callable[[Path], Sequence[Example]]] = {".csv": read_csv, ".parquet": read_parquet}


def read_examples(path: Path) -> list[Example]:
    """Read the examples of a file by its ending, or of a directory that ``datasets.Dataset.save_to_disk`` wrote.

    A ``.json`` file holds one list, a ``.jsonl`` file one object a line, a ``.csv`` file the names of the fields in its
    first line; there is ``.parquet`` as well.

    Raises:
        MissingInputError: There is no such file.
        DataError: The file is not what its ending says, does not hold a list of objects, or holds no example.
        MissingDependencyError: The file takes packages of the extra ``data``, which are not installed.
    """
    if path.is_dir():
        found: Any = read_dataset(path)
    elif path.is_file():
        found = _TABLES.get(path.suffix.lower(), _read_json)(path)
    else:
        raise MissingInputError(f"expected a data file at {path}, found none; check [data] path and the file names")
    if not found and (path.is_dir() or path.suffix.lower() in _TABLES):
        raise DataError(f"{path}: expected at least one example, got an empty table")
    other = _other_than_examples(found)
    if other is not None:
        raise DataError(f"{path}: expected a non-empty list of JSON objects, one an example, got {other}")
    return list(found)


def _read_json(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
        return list(_parse_lines(text)) if path.suffix == ".jsonl" else json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path}: expected UTF-8 JSON, and reading failed: {error}; "
            "a .json file holds one list, a .jsonl file one object a line"
        ) from error


def as_text(example: Example) -> dict[str, str]:
    """Return every field as text; null becomes the empty text."""
    return {name: "" if value is None else str(value) for name, value in example.items()}


def _parse_lines(text: str) -> Iterator[Any]:
    start = 0
    # str.splitlines would also split at U+2028 and others, which may stand in a JSON string as they are.
    for line in text.split("\n"):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                # With the whole text, the message counts the lines of the file.
                raise json.JSONDecodeError(error.msg, text, start + error.pos) from error
        start += len(line) + 1


def _other_than_examples(found: Any) -> str | None:
    if isinstance(found, dict):
        return f"an object with the keys {reprlib.repr(list(found))}"
    if not isinstance(found, list):
        return reprlib.repr(found)
    if not found:
        return "an empty list"
    numbered = enumerate(found, start=1)
    return next((f"{reprlib.repr(each)} as example {n}" for n, each in numbered if not isinstance(each, dict)), None)
