"""Open a PEFT adapter: check all that can be checked without its tensors, and read these when they are asked for."""

import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from florist.checkpoint.keys import sort_keys
from florist.checkpoint.layout import AdapterLayout, EmbeddingLayout
from florist.checkpoint.modules import stored_modules
from florist.checkpoint.settings import read_settings
from florist.checkpoint.tensor_file import TensorFile, open_pickle, open_safetensors, read_finite
from florist.checkpoint.unchanged_file import UnchangedFile
from florist.errors import InvalidAdapterError, MissingInputError, UnsupportedAdapterError
from florist.factors import AdapterState

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"

_MOST_NAMES = 5
"""How many names of a directory's entries a message lists."""


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, which are sorted, and read anew at each access.

    Args:
        shapes: the shape of every tensor, which is known without reading it.
        read: returns one tensor.
    """

    __slots__ = ("_read", "shapes")

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor]) -> None:
        self.shapes: Mapping[str, tuple[int, ...]] = dict(sorted(shapes.items()))
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


@dataclass(frozen=True, slots=True, eq=False)
class SavedAdapter:
    """A PEFT adapter on disk.

    Attributes:
        path: what was opened, as the user named it.
        weights: the file of the tensors.
        adapter: module name, as PEFT writes it less ``base_model.model.``, -> factor. The scaling is folded into B.
            Factors are float32, or float64 if the file holds float64: a half-precision B would lose digits to the
            scaling.
        layout: how the factors are stored.
        saved_parameters: the trained values of the parameters that are saved whole, by their name in the model.
        additive: module name -> ``s b`` for its ``lora_B.bias`` b, which PEFT adds to the module's output. It is
            linear in the update: weighted, it sums as the products do, and a module without one adds zero.
        frozen: copies of base weights that PEFT stores beside an adapted embedding, by their name in the model.
        config: the content of adapter_config.json.
        config_sha256: the hexadecimal SHA-256 of the bytes that `config` was read from.
        stored_bytes: the bytes of all tensors as the file holds them.
    """

    path: Path
    weights: UnchangedFile
    adapter: AdapterState
    layout: AdapterLayout
    saved_parameters: LazyTensors
    additive: LazyTensors
    frozen: LazyTensors
    config: Mapping[str, Any]
    config_sha256: str
    stored_bytes: int

    @property
    def weights_path(self) -> Path:
        """The path of the weights file."""
        return self.weights.path

    def sha256(self) -> dict[str, str]:
        """The hexadecimal SHA-256 of the bytes that the adapter's values come from, by the name of the file.

        Raises:
            InvalidAdapterError: the weights file has changed since it was opened.

        Cost: it reads the weights file.
        """
        return {self.weights_path.name: self.weights.sha256(), CONFIG_NAME: self.config_sha256}

    @property
    def base_model(self) -> str | None:
        """The directory or hub id of the base model."""
        return self._text("base_model_name_or_path")

    @property
    def revision(self) -> str | None:
        """The revision of the base model."""
        return self._text("revision")

    @property
    def task_type(self) -> str | None:
        """PEFT's name of the task: CAUSAL_LM, SEQ_CLS."""
        return self._text("task_type")

    @property
    def auto_mapping(self) -> Mapping[str, Any]:
        """The base model's class, which PEFT writes down for a model without a task type; empty if it wrote none."""
        value = self.config.get("auto_mapping")
        return value if isinstance(value, dict) else {}

    def _text(self, key: str) -> str | None:
        value = self.config.get(key)
        return value if isinstance(value, str) and value else None


def open_adapter(path: Path, *, allow_pickle: bool = False) -> SavedAdapter:
    """Open a PEFT adapter, whose modules are read when they are asked for.

    A weights file that changes afterwards is refused when it is read. Only then does it show whether the values are
    finite: to read a module raises `NonFiniteUpdateError` if they are not.

    Args:
        path: a directory as `save_pretrained` writes it, or the weights file in it.
        allow_pickle: whether to accept ``adapter_model.bin``, which PyTorch's restricted unpickler reads.

    Raises:
        MissingInputError: there is no adapter at `path`.
        InvalidAdapterError: it is not what PEFT writes. A half of a module is missing, the config's rank contradicts
            the tensors, a name is unknown, a dtype is no float, or a dimension is zero.
        UnsupportedAdapterError: its factors alone say too little, or refer to another base.

    Cost: it reads the config and the header of the weights.

    >>> from tempfile import TemporaryDirectory
    >>> from florist.checkpoint.writing import encode, write_adapter
    >>> from florist.factors import LoraFactor
    >>> layer = LoraFactor(B=torch.ones(4, 2), A=torch.ones(2, 3))
    >>> with TemporaryDirectory() as folder:
    ...     write_adapter(Path(folder), encode(AdapterState.of({"layer": layer}), base_model="org/base"))
    ...     saved = open_adapter(Path(folder))
    ...     saved.base_model, saved.adapter["layer"].delta_weight()[0, 0]
    ('org/base', tensor(2.))
    """
    weights_path = _weights_path(path, allow_pickle=allow_pickle)
    settings = read_settings(weights_path.parent / CONFIG_NAME)
    file = open_pickle(weights_path) if weights_path.suffix == ".bin" else open_safetensors(weights_path)
    keys = sort_keys(
        weights_path,
        {name: tensor.shape for name, tensor in file.tensors.items()},
        modules_to_save=settings.modules_to_save,
        biases=settings.trains_biases,
        ties_embeddings=bool(settings.config.get("ensure_weight_tying")),
    )
    modules = stored_modules(file, settings, keys.modules)
    biases = {name: module.read_bias for name, module in modules.items() if module.read_bias is not None}
    saved = SavedAdapter(
        path=path,
        weights=file.file,
        adapter=AdapterState(
            {name: module.spec for name, module in modules.items()}, lambda name: modules[name].read()
        ),
        layout=AdapterLayout(
            {name: module.layout for name, module in modules.items()},
            fan_in_fan_out=bool(settings.config.get("fan_in_fan_out")),
            modules_to_save=settings.modules_to_save,
            target_parameters=settings.target_parameters,
            trainable_token_indices=settings.trainable_token_indices,
            tied_parameters=keys.tied,
        ),
        saved_parameters=_parameters(file, keys.saved_parameters),
        additive=LazyTensors(
            {name: (modules[name].spec.out_features,) for name in biases}, lambda name: biases[name]()
        ),
        frozen=_parameters(file, keys.frozen),
        config=settings.config,
        config_sha256=settings.sha256,
        stored_bytes=sum(torch.Size(t.shape).numel() * t.dtype.itemsize for t in file.tensors.values()),
    )
    _refuse_tied(saved)
    return saved


def _weights_path(path: Path, *, allow_pickle: bool) -> Path:
    if not os.path.exists(path):  # noqa: PTH110  # that of pathlib raises where a name is too long
        raise MissingInputError(
            f"expected a PEFT adapter directory or its {WEIGHTS_NAME}, found nothing at {path}; check the path"
        )
    candidates = [path / WEIGHTS_NAME, path / PICKLE_NAME] if path.is_dir() else [path]
    # What is there and no file, as a FIFO, is refused when it is opened.
    found = next((candidate for candidate in candidates if candidate.exists()), None)
    if found is None and (path / "run.json").is_file():
        raise MissingInputError(
            f"expected an adapter, and {path} is the directory of a run: give its adapter, {path / 'adapter'}"
        )
    if found is None:
        raise MissingInputError(
            f"expected {WEIGHTS_NAME} in the adapter directory {path}, found none: it {_contents(path)}"
        )
    if found.suffix not in {".safetensors", ".bin"}:
        raise InvalidAdapterError(
            "expected an adapter: a directory as PEFT saves it, its .safetensors or .bin file, or a hub id in the "
            f"local cache; got the file {found}"
        )
    if found.suffix == ".bin" and not allow_pickle:
        raise InvalidAdapterError(
            f"expected {WEIGHTS_NAME}, found only the pickle {found}, and pickles can run code; convert it, which runs "
            f"none, with: {_conversion(found)} and name {found.parent} (in Python, open_adapter(allow_pickle=True) "
            "reads it as it is)"
        )
    return found


def _contents(directory: Path) -> str:
    """What a directory does that holds no adapter itself: a message says it after "it"."""
    entries = sorted(directory.iterdir())
    adapters = [
        entry.name for entry in entries if any((entry / name).is_file() for name in (WEIGHTS_NAME, PICKLE_NAME))
    ]
    if adapters:
        return f"holds the adapters {_some(adapters)}; name one of these, or several"
    if not entries:
        return "is empty"
    return f"holds {_some([entry.name for entry in entries])}; name a directory that save_pretrained() wrote"


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def _conversion(pickle: Path) -> str:
    """A command that writes the tensors of a pickle as safetensors beside it."""
    source, target = (json.dumps(str(path)) for path in (pickle, pickle.with_name(WEIGHTS_NAME)))
    load = f'torch.load({source}, map_location="cpu", weights_only=True)'
    code = f'import torch, safetensors.torch as s; s.save_file({load}, {target}, {{"format": "pt"}})'
    return f"python -c {shlex.quote(code)}"


def _parameters(file: TensorFile, keys: Mapping[str, str]) -> LazyTensors:
    return LazyTensors(
        {name: file.tensors[key].shape for name, key in keys.items()}, lambda name: read_finite(file, keys[name])
    )


def _refuse_tied(saved: SavedAdapter) -> None:
    """Refuse two adapters of one weight: an embedding, and an output layer tied to it.

    The config does not say whether the base ties them, but PEFT stores a frozen copy of either weight.
    """
    embeddings = [m for m, layout in saved.layout.modules.items() if isinstance(layout, EmbeddingLayout)]
    others = [m for m in saved.adapter if m not in embeddings and f"{m}.weight" in saved.frozen.shapes]
    copied = [m for m in embeddings if f"{m}.weight" in saved.frozen.shapes]
    tied = [
        pair for pair in product(copied, others) if torch.equal(*(saved.frozen[f"{module}.weight"] for module in pair))
    ]
    if tied or (embeddings and saved.config.get("ensure_weight_tying")):
        raise UnsupportedAdapterError(
            f"{saved.path} adapts an embedding and the output layer that is tied to it"
            f"{''.join(f' ({a}, {b})' for a, b in tied)}: two updates of one weight; leave one of them out of "
            "target_modules"
        )
