"""The weights of a whole model on disk, of which one tensor is read at a time.

transformers saves them as ``model.safetensors``, or as several files with an index that says which tensor is where.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from florist.checkpoint.git_lfs import refuse_pointer
from florist.checkpoint.reading import CONFIG_NAME, PICKLE_NAME, WEIGHTS_NAME
from florist.checkpoint.tensor_file import FLOATS, StoredTensor, is_finite, read_header, read_values
from florist.checkpoint.unchanged_file import UnchangedFile
from florist.errors import (
    InvalidAdapterError,
    MissingInputError,
    ModelError,
    NonFiniteUpdateError,
    UnreadableFileError,
    some,
)
from florist.files import strict_json
from florist.files.reading import read_bytes

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_LARGEST_INDEX = 64_000_000
"""The largest index, in bytes. A tensor takes about 100."""


@dataclass(frozen=True, slots=True)
class ModelLayers:
    """What the tensors of a model are, which their names and shapes alone do not say.

    Attributes:
        linear: the linear modules that LoRA can adapt, and whether each holds its weight as (in_features,
            out_features), as the Conv1D of GPT-2 does. Heads of the task, and an output layer that is tied to the
            embedding, are none.
        parameters: the names of all tensors that a checkpoint of the model may hold.
        aliases: names that stand for a tensor of another name, to which the model ties them -> that name.
        modules: the names of all modules.
        heads: the modules that PEFT saves whole for the task of its own accord.
        prefix: what stands before the names of the encoder or decoder in a model with a head, without a dot.
        task_type: PEFT's name of the task; None if it has none.
        auto_mapping: PEFT's name of the model's class, which counts where there is no task.
    """

    linear: Mapping[str, bool]
    parameters: frozenset[str]
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    modules: frozenset[str] = frozenset()
    heads: tuple[str, ...] = ()
    prefix: str = ""
    task_type: str | None = None
    auto_mapping: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    file: UnchangedFile
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True, eq=False)
class ModelWeights:
    """The weights of a model on disk.

    Attributes:
        path: the directory.
        tensors: what is known of each tensor of floats.
        foreign: the dtype and the shape of each other tensor: a buffer of integers, or a quantised weight.
        files: the files that hold them.
    """

    path: Path
    tensors: Mapping[str, StoredTensor]
    foreign: Mapping[str, tuple[str, tuple[int, ...]]]
    files: tuple[UnchangedFile, ...]
    _places: Mapping[str, _Place] = field(repr=False)

    def read(self, name: str) -> Tensor:
        """One tensor of floats, which may hold anything.

        Raises:
            InvalidAdapterError: its file has changed since it was opened.
        """
        place = self._places[name]
        return read_values(place.file, self.tensors[name], place.offset)

    def read_finite(self, name: str) -> Tensor:
        """One tensor of floats.

        Raises:
            NonFiniteUpdateError: it holds NaN or infinity.
        """
        tensor = self.read(name)
        if not is_finite(tensor):
            raise NonFiniteUpdateError(
                f"expected finite values, got NaN or infinity in {name} of {self._places[name].file.path}; this model "
                "diverged, or was damaged"
            )
        return tensor

    def read_raw(self, name: str) -> Tensor:
        """The bytes of one tensor of any dtype."""
        place = self._places[name]
        return read_values(place.file, StoredTensor((place.nbytes,), torch.uint8), place.offset)

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        return frozenset(self._places)

    @property
    def stored_bytes(self) -> int:
        """The bytes of all tensors."""
        return sum(place.nbytes for place in self._places.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of any tensor."""
        return self.tensors[name].shape if name in self.tensors else self.foreign[name][1]

    def dtype(self, name: str) -> str:
        """The dtype of any tensor, as safetensors calls it."""
        if name in self.foreign:
            return self.foreign[name][0]
        return next(known for known, dtype in FLOATS.items() if dtype == self.tensors[name].dtype)

    def sha256(self) -> dict[str, str]:
        """The hexadecimal SHA-256 of every file, by its name.

        Cost: it reads the files.
        """
        return {file.path.name: file.sha256() for file in self.files}


def open_model(path: Path) -> ModelWeights:
    """Look into the weights of a model, which are read when they are asked for; nothing is held open or mapped.

    Args:
        path: a directory as `save_pretrained` writes it for a model.

    Raises:
        MissingInputError: there are no weights of a model.
        ModelError: the index is damaged, or names what the files do not hold.
        InvalidAdapterError: a file is no sound safetensors file, or a pointer of Git LFS.

    Cost: it reads the index and the headers.
    """
    single, index = path / SINGLE, path / INDEX
    if not single.exists() and not index.exists():
        raise MissingInputError(_nothing(path))
    listed = None if single.exists() else _read_index(index)  # transformers looks in this order
    entries: dict[str, tuple[UnchangedFile, Mapping[str, Any], int]] = {}
    files: list[UnchangedFile] = []
    for name in sorted(set(listed.values())) if listed is not None else [SINGLE]:
        if not (path / name).exists():
            raise MissingInputError(f"expected {name} in {path}, which {INDEX} names, found none; copy all files")
        file, header, start = read_header(path / name, "model")
        files.append(file)
        for tensor, entry in header:
            if listed is not None and listed.get(tensor) != name:
                continue  # transformers does not read it from here either
            if tensor in entries:
                raise ModelError(f"expected unique names in {path / name}, got {tensor!r} twice; save the model again")
            entries[tensor] = (file, entry, start)
    absent = sorted(set(listed or {}) - set(entries))
    if absent:
        raise ModelError(
            f"expected the tensors that {index} names, and the files lack {some(absent)}; copy or save the model again"
        )
    tensors: dict[str, StoredTensor] = {}
    foreign: dict[str, tuple[str, tuple[int, ...]]] = {}
    places: dict[str, _Place] = {}
    for name, (file, entry, start) in sorted(entries.items()):
        first, end = entry["data_offsets"]
        places[name] = _Place(file, start + first, end - first)
        shape, dtype = tuple(entry["shape"]), str(entry["dtype"])
        if dtype in FLOATS:
            tensors[name] = StoredTensor(shape, FLOATS[dtype])
        else:
            foreign[name] = (dtype, shape)
    return ModelWeights(path, tensors, foreign, tuple(files), places)


def _read_index(path: Path) -> dict[str, str]:
    try:
        content = read_bytes(path, most=_LARGEST_INDEX)
        refuse_pointer(path, content)
        document = strict_json.decode(content.decode())
        strict_json.require_shallow(document)
    except InvalidAdapterError:
        raise
    except (UnreadableFileError, OSError, ValueError) as error:
        raise ModelError(f"expected an index of weights in {path}, and reading failed: {error}") from error
    listed = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise ModelError(f"expected weight_map in {path} to name a file for every tensor; save the model again")
    outside = sorted({name for name in listed.values() if Path(name).name != name or not name.endswith(".safetensors")})
    if outside:
        raise ModelError(f"expected weight_map in {path} to name .safetensors files beside it, got {some(outside)}")
    return listed


def _nothing(path: Path) -> str:
    if not path.is_dir():
        return f"expected the directory of a model, with its config.json and {SINGLE}, got {path}"
    if any((path / name).is_file() for name in (CONFIG_NAME, WEIGHTS_NAME, PICKLE_NAME)):
        return f"expected a whole model in {path}, found a PEFT adapter, which florist aggregate takes as it is"
    if any(path.glob("pytorch_model*.bin")):
        return (
            f"expected {SINGLE} in {path}, found a pickle alone, and pickles can run code; load the model with "
            "transformers and save it with save_pretrained(), which writes safetensors"
        )
    return f"expected {SINGLE} or {INDEX} in {path}, found neither; name a directory that save_pretrained() wrote"
