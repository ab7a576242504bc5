"""JSON that any reader can read: the format has no NaN and no infinity, which Python writes all the same.

A number that is not finite, the loss of a training that diverged for instance, is null in the text. Whoever reads the
document says which of its values are numbers: a `Number` is NaN again, and any other null is None.
"""

import json
import math
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BeforeValidator

_DEEPEST = 50

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float of a document, as a type for pydantic, which reads null as NaN."""


def encode(document: Any, *, indent: int | None = None) -> str:
    """A document as JSON text; tuples become arrays."""
    return json.dumps(_finite(document), indent=indent, allow_nan=False)


def decode(text: str | bytes) -> Any:
    """The document of a text, in which every null is None.

    Raises:
        ValueError: it is not JSON in UTF-8, nests too deeply, or has a whole number that Python does not read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply: expected them a few times in each other") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:  # Python's own words name a function of Python
        raise ValueError("expected numbers of at most 4300 digits, got a longer one") from None


def require_shallow(document: Any, deepest: int = _DEEPEST) -> None:
    """Check that lists and objects lie no deeper in each other than people write, who may then be shown them.

    Raises:
        ValueError: they do.
    """
    parts: Iterable[Any] = document.values() if isinstance(document, dict) else document
    if isinstance(document, dict | list):
        if deepest == 0:
            raise ValueError(f"lists or objects are nested too deeply: expected at most {_DEEPEST} in each other")
        for part in parts:
            if isinstance(part, dict | list):
                require_shallow(part, deepest - 1)


def _finite(document: Any) -> Any:
    if isinstance(document, dict):
        return {name: _finite(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [_finite(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document
