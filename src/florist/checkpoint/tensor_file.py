"""A file of named tensors, which can be looked into without reading the tensors."""

import json
import math
import pickle
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from florist.checkpoint.git_lfs import refuse_pointer
from florist.checkpoint.keys import LONGEST_NAME, is_name
from florist.checkpoint.unchanged_file import UnchangedFile
from florist.errors import FloristError, InvalidAdapterError, NonFiniteUpdateError, UnreadableFileError, printable, some

LARGEST_HEADER = 50_000_000
"""The largest header of a safetensors file, in bytes. A tensor takes about 150: there is room for 300,000 of them."""

FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
"""The dtypes of safetensors in which there are updates."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What the file says of a tensor.

    Attributes:
        shape: all dimensions positive.
        dtype: float16, bfloat16, float32 or float64.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, eq=False)
class TensorFile:
    """A file of tensors.

    Attributes:
        file: the file that holds them.
        tensors: what is known of each tensor without reading it.
        read: returns one tensor. Nobody may change it, since some readers hand the same one to all who ask.
    """

    file: UnchangedFile
    tensors: Mapping[str, StoredTensor]
    read: Callable[[str], Tensor]

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self.file.path


def read_finite(file: TensorFile, key: str) -> Tensor:
    """Read one tensor and check it.

    Raises:
        NonFiniteUpdateError: it holds NaN or infinity.
    """
    tensor = file.read(key)
    require_finite(file, key, tensor)
    return tensor


def require_finite(file: TensorFile, key: str, part: Tensor) -> None:
    """Check a tensor, or the part of it that is used.

    Raises:
        NonFiniteUpdateError: it holds NaN or infinity.
    """
    if not is_finite(part):
        raise NonFiniteUpdateError(
            f"expected finite values, got NaN or infinity in {key} of {file.path}; leave this adapter out, or train "
            "it again with a lower learning rate"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    # A finite sum has finite terms alone, and takes a quarter of the time of looking at each term. The sum of finite
    # terms may overflow, which costs the look.
    return math.isfinite(tensor.sum()) or bool(torch.isfinite(tensor).all())


def read_header(path: Path, what: str) -> tuple[UnchangedFile, list[tuple[str, dict[str, Any]]], int]:
    """Look into a safetensors file of any dtypes.

    Args:
        path: the file.
        what: of what it is a file, for messages: an ``"adapter"``.

    Returns:
        The file; the name and the entry of each tensor, in which `shape`, `dtype` and `data_offsets` are, with the
        duplicates that safetensors' own parser drops; and where the numbers begin, in bytes.

    Raises:
        InvalidAdapterError: the file is no sound safetensors file.

    Cost: it reads the header.
    """
    try:
        file = UnchangedFile.of(path)
        with file.open() as stream:
            refuse_pointer(path, stream.read(100))
        with file.open() as stream:
            _require_small_header(stream)
        with safe_open(path, framework="pt"):
            pass  # it checks sizes and offsets
        with file.open() as stream:
            header, start = _header(stream)
    except InvalidAdapterError:
        raise
    except UnreadableFileError as error:  # which says what was expected
        raise InvalidAdapterError(str(error)) from error
    except (SafetensorError, FloristError, OSError, ValueError, RecursionError) as error:
        raise InvalidAdapterError(
            f"expected a safetensors file, got {path}: {error}; save the {what} again with save_pretrained()"
        ) from error
    return file, header, start


def open_safetensors(path: Path) -> TensorFile:
    """Look into a safetensors file, whose tensors are read when they are asked for.

    Each tensor is read into memory of its own, and nothing is held open or mapped. Pages of mapped files would count as
    the process's memory until all inputs are in it, a thousand open files are more than most systems allow, and a
    mapped file that shrinks kills the process. A file that has changed since is refused when it is read.

    Raises:
        InvalidAdapterError: the file is no sound safetensors file, a name occurs twice, or a tensor is empty or holds
            other numbers than floats of 16, 32 or 64 bits. For safetensors the last three are sound: of two equal
            names, its loader keeps the last without a word.

    Cost: it reads the header.
    """
    file, header, start = read_header(path, "adapter")
    problems: list[str] = []
    tensors: dict[str, StoredTensor] = {}
    offsets: dict[str, int] = {}
    for name, entry in header:
        if name in tensors:
            problems.append(f"{printable(name, 100)} occurs twice")
        shape, dtype = tuple(entry["shape"]), entry["dtype"]
        problems += _problems(name, shape, dtype if dtype not in FLOATS else None)
        tensors[name] = _stored(shape, FLOATS.get(dtype, torch.float32))
        offsets[name] = start + entry["data_offsets"][0]
    _refuse(path, problems)

    def read(name: str) -> Tensor:
        return read_values(file, tensors[name], offsets[name])

    return TensorFile(file, tensors, read)


def read_values(file: UnchangedFile, stored: StoredTensor, offset: int) -> Tensor:
    """The numbers of a tensor, which begin `offset` bytes into the file, in memory of their own.

    Raises:
        InvalidAdapterError: the file has changed since it was opened.
    """
    tensor = torch.empty(stored.shape, dtype=stored.dtype)
    if tensor.numel():
        file.read_into(tensor.view(-1).view(torch.uint8).numpy().data, offset)
    return tensor


def open_pickle(path: Path) -> TensorFile:
    """Read a whole ``.bin`` file with PyTorch's restricted unpickler.

    `torch.load(weights_only=True)` builds nothing but tensors and plain containers. safetensors is the safer format.

    Raises:
        InvalidAdapterError: the file is anything but a dictionary of tensors that `open_safetensors` would accept, or
            it changes while it is read.
    """
    try:
        file = UnchangedFile.of(path)
        with file.open() as stream:
            refuse_pointer(path, stream.read(100))
            stream.seek(0)
            content = torch.load(stream, map_location="cpu", weights_only=True)
    except InvalidAdapterError:
        raise
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise InvalidAdapterError(
            f"expected a dictionary of tensors that torch.load(weights_only=True) accepts, got {path}: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}; save the adapter again with "
            "save_pretrained(), which writes safetensors"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise InvalidAdapterError(f"expected a dictionary of tensors in {path}, got {type(content).__name__}")
    held: dict[str, Tensor] = content
    problems: list[str] = []
    for name, tensor in held.items():
        problems += _problems(name, tuple(tensor.shape), None if tensor.dtype in FLOATS.values() else tensor.dtype)
    _refuse(path, problems)
    return TensorFile(file, {k: StoredTensor(tuple(v.shape), v.dtype) for k, v in held.items()}, held.__getitem__)


def _require_small_header(stream: FileIO) -> None:
    start = stream.read(8)
    length = int.from_bytes(start, "little")
    if len(start) == 8 and length > LARGEST_HEADER:
        raise ValueError(f"its header would have {length} bytes, and {LARGEST_HEADER} is the most")


def _header(stream: FileIO) -> tuple[list[tuple[str, dict[str, Any]]], int]:
    """The names and entries, duplicates included, and where the numbers begin."""
    (length,) = struct.unpack("<Q", stream.read(8))
    pairs: list[tuple[str, Any]] = json.loads(stream.read(length), object_pairs_hook=list)
    # Hundreds of clients name the same tensors, for which one copy of each name is enough.
    return [(sys.intern(name), dict(entry)) for name, entry in pairs if name != "__metadata__"], 8 + length


@cache
def _stored(shape: tuple[int, ...], dtype: torch.dtype) -> StoredTensor:
    # Every layer of every client has the same few, which are therefore shared.
    return StoredTensor(shape, dtype)


def _problems(name: str, shape: tuple[int, ...], foreign_dtype: object) -> list[str]:
    problems: list[str] = []
    shown = printable(name, 100)
    if not is_name(name):
        problems.append(f"'{shown}' is no name of a tensor: such have up to {LONGEST_NAME} printable characters")
    if foreign_dtype is not None:
        problems.append(f"{shown} is {foreign_dtype}")
    if 0 in shape or not shape:
        problems.append(f"{shown} has shape {shape}")
    return problems


def _refuse(path: Path, problems: list[str]) -> None:
    if problems:
        raise InvalidAdapterError(
            f"expected non-empty float16, bfloat16, float32 or float64 tensors of unique names in {path}, but "
            f"{some(problems)}; save the adapter again with save_pretrained()"
        )
