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

`envelope` has what all messages have in common, and `private_protocol` has those of masked rounds.
"""

from collections.abc import Callable

from flwr.app import ArrayRecord, RecordDict

from florist.compression.codecs import FloatCodec
from florist.compression.packed import PackedAdapter
from florist.errors import InvalidUpdateError
from florist.flower.arrays import (
    Rows,
    adapter_to_arrays,
    arrays_to_adapter,
    arrays_to_packed,
    arrays_to_tensors,
    packed_to_arrays,
    tensors_to_arrays,
    unpacked,
)
from florist.flower.envelope import SAVED, arrays_in, content_of, kind_of, read_head
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


def write_introduction(introduction: Introduction) -> RecordDict:
    """The content of a client's answer to ``query.hello``."""
    return content_of(introduction, {})


def read_introduction(content: RecordDict) -> Introduction:
    """Read a client's answer to ``query.hello``.

    Raises:
        InvalidUpdateError: the content is no introduction, or one of another protocol.
    """
    Limits.of_names(()).require(content)
    introduction = read_head(content, Introduction)
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
    return content_of(
        instruction.assignment,
        {
            "added": adapter_to_arrays(instruction.added),
            "packed": packed_to_arrays(instruction.packed),
            "continued": adapter_to_arrays(instruction.continued, continued),
            "packed_continued": _one_to_arrays(instruction.packed_continued),
            "directions": tensors_to_arrays(instruction.directions),
            SAVED: tensors_to_arrays(instruction.saved_parameters),
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
    assignment = read_head(content, Assignment)
    rows = rows_of(assignment)
    continued = _one_packed(arrays_in(content, "packed_continued"))
    return Instruction(
        assignment,
        arrays_to_adapter(arrays_in(content, "added")),
        arrays_to_adapter(arrays_in(content, "continued"), rows) if continued is None else unpacked(continued, rows),
        arrays_to_tensors(arrays_in(content, "directions")),
        arrays_to_tensors(arrays_in(content, SAVED)),
        arrays_to_packed(arrays_in(content, "packed")),
    )


def write_reply(reply: Upload | OutOfStep | Evaluation, travels: Trained = Trained.FACTORS) -> RecordDict:
    """The content of a reply; the adapter of an upload is written as the halves that are trained."""
    if isinstance(reply, Upload):
        arrays = {
            "packed": _one_to_arrays(reply.packed),
            "adapter": adapter_to_arrays(reply.adapter, travels),
            SAVED: tensors_to_arrays(reply.saved_parameters),
        }
        return content_of(reply.report, arrays)
    return content_of(reply, {})


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
    kind = kind_of(content)
    if kind == OutOfStep.__name__:
        return read_head(content, OutOfStep)
    if kind == Evaluation.__name__:
        evaluation = read_head(content, Evaluation)
        if len(evaluation.names) != len(evaluation.values):
            raise InvalidUpdateError("expected a value of every metric")
        return evaluation
    return Upload(
        read_head(content, Report),
        arrays_to_adapter(arrays_in(content, "adapter"), rows),
        arrays_to_tensors(arrays_in(content, SAVED)),
        _one_packed(arrays_in(content, "packed")),
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
    return RecordDict({SAVED: tensors_to_arrays(saved_parameters)})


def read_saved_parameters(content: RecordDict) -> SavedParameters:
    """Read a client's answer to ``query.saved_parameters``.

    Raises:
        InvalidUpdateError: the content is damaged.
    """
    return arrays_to_tensors(arrays_in(content, SAVED))


def _one_to_arrays(packed: PackedAdapter | None) -> ArrayRecord:
    return packed_to_arrays([packed] if packed is not None else [])


def _one_packed(arrays: ArrayRecord) -> PackedAdapter | None:
    if len(arrays) > 1:
        raise InvalidUpdateError(f"expected one packed adapter, got {len(arrays)}; send one")
    return next(iter(arrays_to_packed(arrays)), None)
