"""JSON that any reader can read: the format has no NaN and no infinity, which Python writes all the same.

A number that is not finite, the loss of a training that diverged for instance, is null in the text. Whoever reads the
document says which of its values are numbers: a `Number` is NaN again, and any other null is None.
"""

import json
import math
from typing import Annotated, Any

from pydantic import BeforeValidator

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float of a document, as a type for pydantic, which reads null as NaN."""


def encode(document: Any, *, indent: int | None = None) -> str:
    """A document as JSON text; tuples become arrays."""
    return json.dumps(_finite(document), indent=indent, allow_nan=False)


def decode(text: str | bytes) -> Any:
    """The document of a text, in which every null is None.

    Raises:
        ValueError: it is not JSON, or nests too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None


def _finite(document: Any) -> Any:
    if isinstance(document, dict):
        return {name: _finite(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [_finite(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document
