"""Messages as the content of Flower's messages, and back.

    server                        client
    query.hello             ->
                            <-    Introduction
    query.saved_parameters  ->
                            <-    the first values of the saved parameters, from one client, once
    train, Instruction      ->
                            <-    Upload, or OutOfStep where the download does not fit what the client holds
    evaluate, Instruction   ->
                            <-    Evaluation, or OutOfStep

Messages of rounds carry the SHA-256 of their arrays, which is computed once on each side. Each value is checked for its
type as it is read: what comes from another organisation may be anything.
"""

import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from pydantic import TypeAdapter, ValidationError

from florist.compression.codecs import FloatCodec
from florist.compression.packed import PackedAdapter
from florist.errors import InvalidUpdateError
from florist.flower.arrays import (
    Rows,
    adapter_to_arrays,
    arrays_to_adapter,
    arrays_to_packed,
    arrays_to_tensors,
    digest,
    packed_to_arrays,
    tensors_to_arrays,
    unpacked,
)
from florist.flower.limits import Limits
from florist.flower.messages import (
    PROTOCOL,
    Assignment,
    Evaluation,
    Instruction,
    Introduction,
    OutOfStep,
    Report,
    Upload,
)
from florist.rounds import SavedParameters, Trained

Head = TypeVar("Head")
"""The scalars of a message."""

_HEAD, _SAVED = "florist", "saved_parameters"
_ARRAYS = ("added", "packed", "continued", "packed_continued", "directions", "adapter", _SAVED)
"""The arrays of a message in the order in which they are digested: a RecordDict has none."""


def write_introduction(introduction: Introduction) -> RecordDict:
    """The content of a client's answer to ``query.hello``."""
    return _content(introduction, {})


def read_introduction(content: RecordDict) -> Introduction:
    """Read a client's answer to ``query.hello``.

    Raises:
        InvalidUpdateError: the content is no introduction, or one of another protocol.
    """
    Limits.of_names(()).require(content)
    introduction = _head(content, Introduction)
    if introduction.protocol != PROTOCOL:
        raise InvalidUpdateError(
            f"expected protocol {PROTOCOL}, got {introduction.protocol}; server and clients need the same version of "
            "florist"
        )
    if not len(introduction.modules) == len(introduction.out_features) == len(introduction.in_features):
        raise InvalidUpdateError("expected out_features and in_features of every module")
    if not introduction.modules or len(set(introduction.modules)) < len(introduction.modules):
        raise InvalidUpdateError("expected modules to train, each once")
    # All clients draw as many random rows as the largest rank: one client must not cost the others their memory.
    largest = max(*introduction.out_features, *introduction.in_features)
    if introduction.rank > largest:
        raise InvalidUpdateError(
            f"expected a rank of at most {largest}, the largest dimension of a module, got {introduction.rank}"
        )
    return introduction


def write_instruction(instruction: Instruction, continued: Trained = Trained.FACTORS) -> RecordDict:
    """The content of an instruction.

    Args:
        instruction: what to write.
        continued: the halves of its continued adapter that travel; the client knows the others.
    """
    return _content(
        instruction.assignment,
        {
            "added": adapter_to_arrays(instruction.added),
            "packed": packed_to_arrays(instruction.packed),
            "continued": adapter_to_arrays(instruction.continued, continued),
            "packed_continued": _one_to_arrays(instruction.packed_continued),
            "directions": tensors_to_arrays(instruction.directions),
            _SAVED: tensors_to_arrays(instruction.saved_parameters),
        },
    )


def read_instruction(content: RecordDict, rows_of: Callable[[Assignment], Rows]) -> Instruction:
    """Read an instruction; `continued` is decoded where it was packed, and the adapters to add are left packed.

    Args:
        content: of the message.
        rows_of: gives, for the assignment, the rows of A where B alone came; see `arrays.arrays_to_adapter`. It is
            called before the arrays are read, and may refuse the assignment.

    Raises:
        InvalidUpdateError: the content is no instruction, or damaged.
        UnknownCodecError: this version has no codec of that name.
    """
    assignment = _head(content, Assignment)
    rows = rows_of(assignment)
    continued = _one_packed(_arrays(content, "packed_continued"))
    return Instruction(
        assignment,
        arrays_to_adapter(_arrays(content, "added")),
        arrays_to_adapter(_arrays(content, "continued"), rows) if continued is None else unpacked(continued, rows),
        arrays_to_tensors(_arrays(content, "directions")),
        arrays_to_tensors(_arrays(content, _SAVED)),
        arrays_to_packed(_arrays(content, "packed")),
    )


def write_reply(reply: Upload | OutOfStep | Evaluation, travels: Trained = Trained.FACTORS) -> RecordDict:
    """The content of a reply; the adapter of an upload is written as the halves that are trained."""
    if isinstance(reply, Upload):
        arrays = {
            "packed": _one_to_arrays(reply.packed),
            "adapter": adapter_to_arrays(reply.adapter, travels),
            _SAVED: tensors_to_arrays(reply.saved_parameters),
        }
        return _content(reply.report, arrays)
    return _content(reply, {})


def read_reply(content: RecordDict, rows: Rows) -> Upload | OutOfStep | Evaluation:
    """Read a reply. What a codec packed is left packed, for whoever knows which codec is expected.

    Args:
        content: of the message, whoever sent it.
        rows: gives the rows of A where B alone travels; see `arrays.arrays_to_adapter`.

    Raises:
        InvalidUpdateError: the content is none of the three replies, or damaged.
        InvalidAdapterError: halves of a factor do not fit each other.
        UnknownCodecError: this version has no codec of that name.
    """
    kind = _kind(content)
    if kind == OutOfStep.__name__:
        return _head(content, OutOfStep)
    if kind == Evaluation.__name__:
        evaluation = _head(content, Evaluation)
        if len(evaluation.names) != len(evaluation.values):
            raise InvalidUpdateError("expected a value of every metric")
        return evaluation
    return Upload(
        _head(content, Report),
        arrays_to_adapter(_arrays(content, "adapter"), rows),
        arrays_to_tensors(_arrays(content, _SAVED)),
        _one_packed(_arrays(content, "packed")),
    )


def narrowed(saved_parameters: SavedParameters, codec: FloatCodec | None) -> SavedParameters:
    """The saved parameters as they travel: those that a codec has rounded lose nothing in its dtype."""
    if codec is None:
        return saved_parameters
    return {name: tensor.to(codec.dtype) for name, tensor in saved_parameters.items()}


def widened(saved_parameters: SavedParameters, before: SavedParameters) -> SavedParameters:
    """The saved parameters that came, each in the dtype that it had before."""
    return {
        name: tensor.to(before[name].dtype) if name in before else tensor for name, tensor in saved_parameters.items()
    }


def require_dtype(saved_parameters: SavedParameters, codec: FloatCodec) -> None:
    """Check that saved parameters came as a codec sends them.

    Raises:
        InvalidUpdateError: one has another dtype.
    """
    for name, tensor in saved_parameters.items():
        if tensor.dtype != codec.dtype:
            raise InvalidUpdateError(f"{name}: expected {codec.dtype}, as the codec sends it, got {tensor.dtype}")


def write_saved_parameters(saved_parameters: SavedParameters) -> RecordDict:
    """The content of a client's answer to ``query.saved_parameters``."""
    return RecordDict({_SAVED: tensors_to_arrays(saved_parameters)})


def read_saved_parameters(content: RecordDict) -> SavedParameters:
    """Read a client's answer to ``query.saved_parameters``.

    Raises:
        InvalidUpdateError: the content is damaged.
    """
    return arrays_to_tensors(_arrays(content, _SAVED))


def _content(head: Any, arrays: Mapping[str, ArrayRecord]) -> RecordDict:
    fields = {"kind": type(head).__name__, **_flat(asdict(head)), "sha256": digest(arrays.values())}
    return RecordDict({_HEAD: ConfigRecord(fields), **arrays})


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with those of a dataclass among them as ``name.field``: Flower's records hold no dictionaries."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        inner = {f"{name}.{each}": one for each, one in value.items()} if isinstance(value, dict) else {name: value}
        flat |= inner
    return flat


def _nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_flat`."""
    nested: dict[str, Any] = {name: value for name, value in fields.items() if "." not in name}
    for name, value in fields.items():
        outer, dot, inner = name.partition(".")
        if dot:
            nested[outer] = {**(nested[outer] if isinstance(nested.get(outer), dict) else {}), inner: value}
    return nested


def _one_to_arrays(packed: PackedAdapter | None) -> ArrayRecord:
    return packed_to_arrays([packed] if packed is not None else [])


def _one_packed(arrays: ArrayRecord) -> PackedAdapter | None:
    if len(arrays) > 1:
        raise InvalidUpdateError(f"expected one packed adapter, got {len(arrays)}; send one")
    return next(iter(arrays_to_packed(arrays)), None)


def _kind(content: RecordDict) -> str:
    head = content.config_records.get(_HEAD)
    if head is None:
        raise InvalidUpdateError(f"expected a message of florist, got one with the parts {sorted(content)}")
    return str(head.get("kind"))


def _head(content: RecordDict, kind: type[Head]) -> Head:
    found = _kind(content)
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


def _arrays(content: RecordDict, name: str) -> ArrayRecord:
    return content.array_records.get(name, ArrayRecord())
