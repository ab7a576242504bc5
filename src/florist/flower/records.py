"""Adapters as Flower's ``ArrayRecord``: an array a half of a factor, named after the module.

Only halves that travel are written. What is not trained is known on both sides, and put back by who reads.
"""

import hashlib
import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from jaxtyping import Float
from torch import Tensor

from florist.errors import InvalidUpdateError
from florist.factors import AdapterState, LoraFactor
from florist.rounds import FullParameters, Trained

Rows = Callable[[str, int], Float[Tensor, "rank in_features"]]
"""Module, rank -> the rows of A that nobody trains. Raises KeyError for a module that does not exist."""

_SERIALISED = "numpy.ndarray"
_MAGIC = b"\x93NUMPY\x01\x00"
_PREFIX = len(_MAGIC) + 2
_FORMATS = {
    "float16": "<f2",
    "bfloat16": "<i2",
    "float32": "<f4",
    "float64": "<f8",
    "uint8": "|u1",
    "int8": "|i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "bool": "|b1",
}
"""dtype of torch -> that of NumPy, as its headers name it."""


def adapter_to_arrays(adapter: AdapterState, travels: Trained = Trained.FACTORS) -> ArrayRecord:
    """An adapter of any ranks, scaling folded in, as arrays ``module.B`` and ``module.A``.

    The arrays hold the very numbers: `arrays_to_adapter` gives back the same bits.

    Args:
        adapter: read a module at a time.
        travels: the halves to write.
    """
    halves = [half.name or "" for half in (Trained.B, Trained.A) if half in travels]
    return tensors_to_arrays(
        {f"{name}.{half}": getattr(factor, half) for name, factor in adapter.items() for half in halves}
    )


def arrays_to_adapter(arrays: ArrayRecord, rows: Rows | None = None) -> AdapterState:
    """The adapter of a record, whoever sent it.

    Args:
        arrays: as `adapter_to_arrays` writes them.
        rows: gives A where B alone was sent.

    Raises:
        InvalidUpdateError: an array cannot be read, or halves are missing or no matrices.
        InvalidAdapterError: the ranks or dtypes of two halves differ.
    """
    tensors = dict(arrays_to_tensors(arrays))
    factors: dict[str, LoraFactor] = {}
    for name in sorted({key.rpartition(".")[0] for key in tensors}):
        B, A = tensors.pop(f"{name}.B", None), tensors.pop(f"{name}.A", None)
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
        raise InvalidUpdateError(f"expected arrays named MODULE.B and MODULE.A, got {min(tensors)}")
    return AdapterState.of(factors)


def tensors_to_arrays(tensors: FullParameters) -> ArrayRecord:
    """Tensors by name; bfloat16, which NumPy lacks, travels as the bits of 16-bit integers."""
    record = ArrayRecord()
    for name, tensor in tensors.items():
        held = tensor.detach().cpu().contiguous()
        array = Array((held.view(torch.int16) if held.dtype == torch.bfloat16 else held).numpy())
        dtype = str(held.dtype).removeprefix("torch.")
        record[name] = Array(dtype=dtype, shape=tuple(held.shape), stype=_SERIALISED, data=array.data)
    return record


def arrays_to_tensors(arrays: ArrayRecord) -> FullParameters:
    """The tensors of a record.

    Raises:
        InvalidUpdateError: an array holds no numbers, or others than it says. Nothing is unpickled.
    """
    return {name: _tensor(name, array) for name, array in arrays.items()}


def digest(records: Iterable[ArrayRecord]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    found = hashlib.sha256()
    for record in records:
        for name, array in sorted(record.items()):
            found.update(f"{name}\0{array.dtype}\0{array.shape}\0{len(array.data)}\0".encode())
            found.update(array.data)
        found.update(b"\1")
    return found.hexdigest()


def _tensor(name: str, array: Array) -> Tensor:
    """Read what `tensors_to_arrays` writes and nothing else, without a parser that what comes could deceive.

    A header is compared with the one that the record's dtype and shape give, and memory is taken for bytes that came.
    """
    length = int.from_bytes(array.data[len(_MAGIC) : _PREFIX], "little")
    header, body = array.data[_PREFIX : _PREFIX + length], array.data[_PREFIX + length :]
    dtype = getattr(torch, array.dtype, None) if array.dtype in _FORMATS else None
    if dtype is None or array.stype != _SERIALISED or not array.data.startswith(_MAGIC):
        raise InvalidUpdateError(
            f"{name}: expected numbers of {', '.join(_FORMATS)} in NumPy's format 1.0, got {array.dtype!r} in "
            f"{array.stype!r}"
        )
    descr = _FORMATS[array.dtype]
    expected = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {array.shape}, }}"
    if header.rstrip() != expected.encode():
        raise InvalidUpdateError(f"{name}: expected the header {expected}, got {header[:100].rstrip()!r}")
    if min(array.shape, default=0) < 0 or math.prod(array.shape) * dtype.itemsize != len(body):
        raise InvalidUpdateError(f"{name}: expected {array.dtype} of shape {array.shape}, got {len(body)} bytes")
    try:
        held = np.ndarray(array.shape, descr, body).copy()
    except (ValueError, OverflowError) as error:  # nothing in it, and yet dimensions beyond any
        raise InvalidUpdateError(f"{name}: expected the shape of an array, got {array.shape}: {error}") from error
    return torch.from_numpy(held).view(dtype)
