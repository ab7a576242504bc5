"""Adapters as Flower's ``ArrayRecord``: halves of factors, named after their modules, in one array of bytes.

Flower stores two objects for an array, each by a request of its own and a write to its database: 900 of them for an
adapter of 224 modules, where one array makes four. Only the halves that travel are written. A half that is not trained
is known on both sides, and the reader puts it back.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from flwr.app import Array, ArrayRecord
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from florist.compression.packed import PackedAdapter
from florist.errors import InvalidUpdateError
from florist.factors import AdapterState, LoraFactor
from florist.federation.admission import FLOATS
from florist.rounds import SavedParameters, Trained

Rows = Callable[[str, int], Float[Tensor, "rank in_features"]]
"""(module, rank) -> the rows of A that nobody trains; raises KeyError for a module that does not exist."""

_PACKED, _SERIALISED = "tensors", "safetensors"
"""The name and the serialisation of the one array of an ``ArrayRecord``."""


def adapter_to_arrays(adapter: AdapterState, travels: Trained = Trained.FACTORS) -> ArrayRecord:
    """Write an adapter of any ranks, scaling folded in, as tensors ``module.B`` and ``module.A``.

    The arrays hold the very numbers: `arrays_to_adapter` gives back the same bits.

    Args:
        adapter: the adapter, which is read a module at a time.
        travels: the halves to write.
    """
    halves = [half.name or "" for half in (Trained.B, Trained.A) if half in travels]
    return tensors_to_arrays(
        {f"{name}.{half}": getattr(factor, half) for name, factor in adapter.items() for half in halves}
    )


def arrays_to_adapter(arrays: ArrayRecord, rows: Rows | None = None) -> AdapterState:
    """Read an adapter, whoever sent it.

    Args:
        arrays: as `adapter_to_arrays` writes them.
        rows: gives A where B alone was sent.

    Raises:
        InvalidUpdateError: the arrays cannot be read, or halves are missing, no matrices, or of no floating-point
            type.
        InvalidAdapterError: the ranks or dtypes of two halves differ.
    """
    tensors = dict(arrays_to_tensors(arrays))
    factors: dict[str, LoraFactor] = {}
    for name in sorted({key.rpartition(".")[0] for key in tensors}):
        B, A = tensors.pop(f"{name}.B", None), tensors.pop(f"{name}.A", None)
        strange = {half.dtype for half in (B, A) if half is not None and half.dtype not in FLOATS}
        if strange:
            raise InvalidUpdateError(
                f"{name}: expected floating-point factors of 16, 32 or 64 bits, got {min(map(str, strange))}"
            )
        if B is not None and B.ndim == 2 and A is None and rows is not None:
            try:
                A = rows(name, B.shape[1]).to(B.dtype)
            except KeyError:
                raise InvalidUpdateError(f"{name} is not a module that this federation trains") from None
        for half, tensor in (("B", B), ("A", A)):
            if tensor is None or tensor.ndim != 2:
                got = "nothing" if tensor is None else f"the shape {tuple(tensor.shape)}"
                raise InvalidUpdateError(f"expected a matrix {name}.{half}, got {got}")
        factors[name] = LoraFactor(B, A)  # pyright: ignore[reportArgumentType]  # the loop has seen that both are there
    if tensors:
        raise InvalidUpdateError(f"expected tensors named MODULE.B and MODULE.A, got {min(tensors)}")
    return AdapterState.of(factors)


def packed_to_arrays(packed: Sequence[PackedAdapter]) -> ArrayRecord:
    """Write what codecs packed, one array for each adapter in their order; the metadata describes the tensors."""
    return ArrayRecord({str(place): _array(each.tensors(), each.description()) for place, each in enumerate(packed)})


def arrays_to_packed(arrays: ArrayRecord) -> tuple[PackedAdapter, ...]:
    """Read what `packed_to_arrays` wrote. Nothing is decoded yet.

    Raises:
        InvalidUpdateError: the arrays cannot be read, or are not numbered from 0.
        UnknownCodecError: this version has no codec of that name.
    """
    names = [str(place) for place in range(len(arrays))]
    if set(arrays) != set(names):
        raise InvalidUpdateError(f"expected packed adapters numbered from 0, got {sorted(arrays)}; send them again")
    read = [(arrays[name], _tensors(name, arrays[name])) for name in names]
    return tuple(PackedAdapter.described(_metadata(array), tensors) for array, tensors in read)


def unpacked(packed: PackedAdapter, rows: Rows | None = None) -> AdapterState:
    """Decode what a codec packed.

    Args:
        packed: what came.
        rows: gives A where B alone was sent.

    Raises:
        InvalidUpdateError: the parts are not what the codec sends, or halves are missing.
    """
    known: dict[str, LoraFactor] = {}
    for name, factor in packed.factors.items():
        if rows is not None and factor.A is None and factor.B is not None:
            try:
                A = rows(name, factor.rank)
            except KeyError:
                raise InvalidUpdateError(f"{name} is not a module that this federation trains") from None
            known[name] = LoraFactor(A.new_zeros(0, A.shape[0]), A)  # B has come, and is not looked for here
    return packed.unpacked(AdapterState.of(known))


def tensors_to_arrays(tensors: SavedParameters) -> ArrayRecord:
    """Pack tensors by name into one array of bytes in the format of safetensors, or no array where there are none."""
    return ArrayRecord({_PACKED: _array(tensors)}) if tensors else ArrayRecord()


def arrays_to_tensors(arrays: ArrayRecord) -> SavedParameters:
    """Unpack tensors. Nothing is unpickled, and no more memory is taken than came.

    Raises:
        InvalidUpdateError: the arrays hold something else.
    """
    if not arrays:
        return {}
    if set(arrays) != {_PACKED} or arrays[_PACKED].stype != _SERIALISED:
        kinds = sorted({array.stype for array in arrays.values()})
        raise InvalidUpdateError(f"expected one array {_PACKED!r} in {_SERIALISED!r}, got {min(arrays)!r} in {kinds}")
    return _tensors(_PACKED, arrays[_PACKED])


def digest(array_records: Iterable[ArrayRecord]) -> str:
    """Hexadecimal SHA-256 over the bytes of all arrays, in their order."""
    found = hashlib.sha256()
    for arrays in array_records:
        for name, array in sorted(arrays.items()):
            found.update(f"{name}\0{array.stype}\0{len(array.data)}\0".encode())
            found.update(array.data)
        found.update(b"\1")
    return found.hexdigest()


def _array(tensors: SavedParameters, metadata: Mapping[str, str] | None = None) -> Array:
    # safetensors refuses two names for one memory, which tied parameters are.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    data = save(copies, dict(metadata) if metadata is not None else None)
    return Array(dtype="uint8", shape=(len(data),), stype=_SERIALISED, data=data)


def _tensors(name: str, array: Array) -> SavedParameters:
    if array.stype != _SERIALISED:
        raise InvalidUpdateError(f"expected the array {name!r} in {_SERIALISED!r}, got {array.stype!r}")
    try:
        return load(array.data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InvalidUpdateError(f"expected tensors as safetensors packs them, and reading failed: {reason}") from error


def _metadata(array: Array) -> Mapping[str, str]:
    """The texts beside the tensors. safetensors gives them of files alone, and its format is a header in JSON."""
    try:
        length = int.from_bytes(array.data[:8], "little")
        found = json.loads(array.data[8 : 8 + length])["__metadata__"]
        return {str(name): str(text) for name, text in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidUpdateError("expected a description of packed tensors, got none; send them again") from error
