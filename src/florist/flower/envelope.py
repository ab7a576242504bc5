"""The envelope of florist's messages: a head of scalars, arrays, and the SHA-256 of the arrays.

The digest is computed once on each side. Each value is checked for its type as it is read: what comes from another
organisation may be anything.
"""

import json
import reprlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from pydantic import TypeAdapter, ValidationError

from florist.errors import InvalidUpdateError
from florist.flower.arrays import digest

Head = TypeVar("Head")
"""The scalars of a message."""

SAVED = "saved_parameters"
"""The name of the arrays of saved parameters."""
PRIVATE = "private"
"""The name of the arrays of the phases of a masked round."""
_HEAD = "florist"
_ARRAYS = ("added", "packed", "continued", "packed_continued", "directions", "adapter", SAVED, PRIVATE)
"""The arrays of a message in the order in which they are digested: a RecordDict has none."""


def content_of(head: Any, arrays: Mapping[str, ArrayRecord]) -> RecordDict:
    """The content of a message; fields that are None do not travel."""
    fields = {"kind": type(head).__name__, **_flat(asdict(head)), "sha256": digest(arrays.values())}
    return RecordDict({_HEAD: ConfigRecord(fields), **arrays})


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with those of a dataclass among them as ``name.field``: Flower's records hold no dictionaries."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        inner = {f"{name}.{each}": one for each, one in value.items()} if isinstance(value, dict) else {name: value}
        flat |= {each: one for each, one in inner.items() if one is not None}
    return flat


def _nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_flat`."""
    nested: dict[str, Any] = {name: value for name, value in fields.items() if "." not in name}
    for name, value in fields.items():
        outer, dot, inner = name.partition(".")
        if dot:
            nested[outer] = {**(nested[outer] if isinstance(nested.get(outer), dict) else {}), inner: value}
    return nested


def kind_of(content: RecordDict) -> str:
    """The kind of a message.

    Raises:
        InvalidUpdateError: it is none of florist's.
    """
    head = content.config_records.get(_HEAD)
    if head is None:
        raise InvalidUpdateError(f"expected a message of florist, got one with the parts {sorted(content)}")
    return str(head.get("kind"))


def read_head(content: RecordDict, kind: type[Head]) -> Head:
    """The scalars of a message of one kind.

    Raises:
        InvalidUpdateError: it is of another kind, damaged, or a value is none that the field takes.
    """
    found = kind_of(content)
    if found != kind.__name__:
        raise InvalidUpdateError(f"expected the kind {kind.__name__}, got {found}")
    fields = dict(content.config_records[_HEAD])
    del fields["kind"]
    sent = fields.pop("sha256", None)
    arrays = [array for name in _ARRAYS if (array := content.array_records.get(name)) is not None]
    if sent != digest(arrays):
        raise InvalidUpdateError(
            "expected arrays of the SHA-256 that was sent with them, and it differs; send them again"
        )
    try:
        # By way of JSON, whose strict mode takes an object for a dataclass.
        return _reader(kind).validate_json(json.dumps(_nested(fields)), strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, (kind.__name__, *problem["loc"])))
        raise InvalidUpdateError(f"{where}: {problem['msg']}, got {reprlib.repr(problem['input'])}") from error
    except (TypeError, ValueError) as error:
        raise InvalidUpdateError(f"{kind.__name__}: expected numbers and texts: {error}") from error


@cache
def _reader(kind: type) -> Any:  # beartype, which the tests switch on, does not know TypeAdapter[Head]
    # Building one costs ten times what reading a message does.
    return TypeAdapter(kind)


def arrays_in(content: RecordDict, name: str) -> ArrayRecord:
    """The arrays of a name; none where the message has none of it."""
    return content.array_records.get(name, ArrayRecord())
