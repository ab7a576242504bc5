"""JSON that any reader can read: the format has no NaN and no infinity, which Python writes all the same.

A number that is not finite, the loss of a training that diverged for instance, is null in the text and NaN again when
it is read back.
"""

import json
import math
from collections.abc import Callable
from typing import Any


def encode(document: Any, *, indent: int | None = None) -> str:
    """A document as JSON text; tuples become arrays."""
    return json.dumps(_map(document, _null_for_no_number), indent=indent, allow_nan=False)


def decode(text: str | bytes) -> Any:
    """A document in which null has no meaning but that of a number that is none.

    Raises:
        ValueError: it is not JSON.
    """
    return _map(json.loads(text), lambda value: math.nan if value is None else value)


def _null_for_no_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _map(document: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(document, dict):
        return {name: _map(value, change) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [_map(value, change) for value in document]
    return change(document)
