"""Reading files of records."""

import json
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from florist.errors import DataError, MissingInputError

Example = Mapping[str, Any]


def read_examples(path: Path) -> list[Example]:
    """Records of a ``.json`` list or a ``.jsonl`` file with one object a line.

    Raises:
        MissingInputError: there is no such file.
        DataError: it is not a list of objects, or it is empty.
    """
    if not path.is_file():
        raise MissingInputError(f"expected a data file at {path}, found none; check [data] path and the file names")
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows: Any = list(_parse_lines(text)) if path.suffix == ".jsonl" else json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path}: expected UTF-8 JSON, and reading failed: {error}; "
            "a .json file holds one list, a .jsonl file one object a line"
        ) from error
    other = _other_than_records(rows)
    if other is not None:
        raise DataError(f"{path}: expected a non-empty list of JSON objects, one a record, got {other}")
    return rows


def as_text(record: Example) -> dict[str, str]:
    """Every field as text; null is the empty text."""
    return {name: "" if value is None else str(value) for name, value in record.items()}


def _parse_lines(text: str) -> Iterator[Any]:
    start = 0
    # Not splitlines: it splits at U+2028 and others too, which may stand in a JSON string as they are.
    for line in text.split("\n"):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise json.JSONDecodeError(error.msg, text, start + error.pos) from error  # counts the file's lines
        start += len(line) + 1


def _other_than_records(rows: Any) -> str | None:
    if isinstance(rows, dict):
        return f"an object with the keys {reprlib.repr(list(rows))}"
    if not isinstance(rows, list):
        return reprlib.repr(rows)
    if not rows:
        return "an empty list"
    numbered = enumerate(rows, start=1)
    return next((f"{reprlib.repr(row)} as record {n}" for n, row in numbered if not isinstance(row, dict)), None)
