"""Where an example is from, and its fields as text: what may be text, and what is refused with its place."""

import datetime
import decimal
import math
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from florist.errors import DataError, some_of


class PlacedExample(dict[str, Any]):
    """An example that knows where it was read, so that a message about it can say so.

    Args:
        fields: the fields.
        file: the file or directory, as messages call it.
        number: the number of the line, or of the row of a table without lines, from 1.
        of_rows: whether it is the number of a row.
        example: the number of the example from 1, in a file whose lines may hold several examples.
    """

    __slots__ = ("example", "file", "number", "of_rows")

    def __init__(
        self, fields: Mapping[str, Any], file: str, number: int, *, of_rows: bool = False, example: int | None = None
    ) -> None:
        super().__init__(fields)
        self.file, self.number, self.of_rows, self.example = file, number, of_rows, example

    @property
    def place(self) -> str:
        """The place, as ``data/client_0.jsonl, line 38``."""
        count = f" (example {self.example})" if self.example is not None else ""
        return f"{self.file}, {'row' if self.of_rows else 'line'} {self.number}{count}"


def place_of(example: Mapping[str, Any], otherwise: str) -> str:
    """The file and the line of an example; where nobody knows them, what is said otherwise."""
    return example.place if isinstance(example, PlacedExample) else otherwise


def text_of(example: Mapping[str, Any], field: str) -> str:
    """A field as text: a text as it is, a number, a date or a boolean as Python writes it, null as the empty text.

    Args:
        example: the fields.
        field: the name of one that the example has.

    Raises:
        DataError: the field holds a list, an object, bytes, a number that is not finite, or half of a character, which
            no tokenizer takes.
    """
    value = example[field]
    if value is None:
        return ""
    if isinstance(value, str):
        return _whole(value, field)
    if isinstance(value, int | datetime.date | datetime.time) or (
        isinstance(value, float | decimal.Decimal) and math.isfinite(value)
    ):
        return str(value)
    raise DataError(f"expected a text or a number in the field {field!r}, got {_described(value)}; correct the example")


def listed(values: Iterable[object], most: int = 5) -> str:
    """Values for a message as Python writes them: the first few, and how many more there are.

    >>> listed(["a", 1, None])
    "['a', 1, None]"
    """
    return f"[{some_of(map(reprlib.repr, values), most)}]"


def _whole(text: str, field: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"expected a text of whole characters in the field {field!r}, got half of one, {text[error.start]!a}; "
            "write the file in UTF-8"
        ) from error
    return text


def _described(value: Any) -> str:
    names = {list: "a list", tuple: "a list", dict: "an object", bytes: "bytes", bytearray: "bytes"}
    name = next((name for kind, name in names.items() if isinstance(value, kind)), None)
    shown = reprlib.repr(value)
    return f"{name}, {shown}" if name is not None else shown
