"""What a client checks of an instruction before it keeps or does anything: a server may be hostile or damaged, too."""

from collections.abc import Mapping

import torch
from torch import Tensor

from florist.compression.packed import PackedAdapter
from florist.errors import InvalidUpdateError
from florist.factors import AdapterState
from florist.federation.admission import FLOATS
from florist.flower.messages import Assignment, Instruction
from florist.rounds import SavedParameters

_ROOM = 8
"""How many times a module of another client may be larger than those of this one, which may train fewer."""


def require_possible(assignment: Assignment, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Check what an assignment asks for, before anything is allocated by it.

    Args:
        assignment: of the server.
        shapes: (out_features, in_features) of the client's modules.

    Raises:
        InvalidUpdateError, UnknownCodecError, ConfigurationError: this version does not know what is asked for, or it
            asks for more random rows than any module has dimensions.
    """
    largest = _ROOM * max((max(shape) for shape in shapes.values()), default=0)
    if assignment.max_rank > largest:
        raise InvalidUpdateError(
            f"expected at most {largest} random rows, {_ROOM} times the largest dimension of a module, got "
            f"{assignment.max_rank}"
        )
    _ = assignment.upload.communication, assignment.start(shapes)


def require_sound(
    instruction: Instruction, shapes: Mapping[str, tuple[int, int]], saved_parameters: SavedParameters
) -> None:
    """Check what an instruction brings. Modules that this client does not train are the others' own.

    Args:
        instruction: as it was read; adapters that are still packed are checked for their numbers when they are decoded.
        shapes: (out_features, in_features) of the client's modules.
        saved_parameters: the saved parameters of its model.

    Raises:
        InvalidUpdateError: a shape or dtype is not the model's, or a number is not finite; names the module.

    Cost: every tensor is read once.
    """
    for adapter in (instruction.added, instruction.continued):
        _require_adapter(adapter, shapes)
    for packed in (*instruction.packed, instruction.packed_continued):
        if packed is not None:
            _require_packed(packed, shapes)
    for name, rows in instruction.directions.items():
        _require_numbers(name, rows)
    for name, tensor in instruction.saved_parameters.items():
        own = saved_parameters.get(name)
        if own is None or own.shape != tensor.shape:
            expected = f"the shape {tuple(own.shape)}" if own is not None else "no such parameter"
            raise InvalidUpdateError(f"{name}: expected {expected}, got the shape {tuple(tensor.shape)}")
        _require_numbers(name, tensor)


def _require_adapter(adapter: AdapterState, shapes: Mapping[str, tuple[int, int]]) -> None:
    for name, spec in adapter.specs.items():
        _require_shape(name, spec.shape, shapes)
    for name, factor in adapter.items():
        _require_numbers(name, factor.B)
        _require_numbers(name, factor.A)


def _require_packed(packed: PackedAdapter, shapes: Mapping[str, tuple[int, int]]) -> None:
    for name, factor in packed.factors.items():
        _require_shape(name, factor.shape, shapes)


def _require_shape(name: str, shape: tuple[int, int], shapes: Mapping[str, tuple[int, int]]) -> None:
    if shapes.get(name, shape) != shape:
        raise InvalidUpdateError(f"{name}: expected the shape {shapes[name]}, got {shape}; both need one base")


def _require_numbers(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOATS:
        raise InvalidUpdateError(f"{name}: expected floating-point numbers of 16, 32 or 64 bits, got {tensor.dtype}")
    if not torch.isfinite(tensor).all():
        raise InvalidUpdateError(f"{name} holds NaN or inf; the server has to send the global adapter again")
