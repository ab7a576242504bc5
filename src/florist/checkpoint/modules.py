"""The factors of an adapter's modules. Each has a reader that knows its shape before it reads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from threading import Lock

import torch
from torch import Tensor

from florist.checkpoint.experts import (
    ExpertPair,
    adapted_parameters,
    base_module,
    resolve_pairs,
    split_expert,
)
from florist.checkpoint.keys import ModuleKeys
from florist.checkpoint.layout import (
    ConvolutionLayout,
    EmbeddingLayout,
    ExpertLayout,
    LinearLayout,
    ModuleLayout,
)
from florist.checkpoint.settings import LoraSettings
from florist.checkpoint.tensor_file import StoredTensor, TensorFile, is_finite, read_finite, require_finite
from florist.errors import InvalidAdapterError, NonFiniteUpdateError, UnsupportedAdapterError, some
from florist.factors import FactorSpec, LoraFactor


@dataclass(frozen=True, slots=True, eq=False)
class StoredModule:
    """One module's factor in a file.

    Attributes:
        layout: how the factor is stored.
        spec: what is known without reading it.
        read: reads the factor, with the scaling folded into B.
        read_bias: reads ``s b`` for ``lora_B.bias`` b; None if there is none.
    """

    layout: ModuleLayout
    spec: FactorSpec
    read: Callable[[], LoraFactor]
    read_bias: Callable[[], Tensor] | None = None


def stored_modules(file: TensorFile, settings: LoraSettings, keys: Mapping[str, ModuleKeys]) -> dict[str, StoredModule]:
    """Find every module of an adapter, and check it against the ranks in the adapter's config.

    The experts of a parameter that is adapted itself become modules of their own, named ``module[e]``. PEFT stores all
    of them interleaved in one pair of tensors. The pair that was read last is kept for the experts that come next.

    Raises:
        InvalidAdapterError: shapes contradict the config or each other. The message lists all such modules.
        UnsupportedAdapterError: a module's update is not one product.
    """
    groups: dict[str, dict[str, ModuleKeys]] = {}
    for stored, pair in keys.items():
        groups.setdefault(base_module(stored), {})[stored] = pair
    modules: dict[str, StoredModule] = {}
    problems: list[str] = []
    pairs = _LatestPair(file)
    try:
        adapted = adapted_parameters(settings, groups)
        beside = [f"{module}.{name}" for module, names in adapted.items() for name in names]
        resolved = settings.resolve([*keys, *beside])
    except InvalidAdapterError as error:
        raise InvalidAdapterError(f"the config of {file.path}: {error}") from error
    for module, own in groups.items():
        try:
            if module in adapted:
                modules |= _experts(pairs, resolved, module, adapted[module], own)
            else:
                for stored, pair in own.items():
                    modules[stored] = _module(file, resolved[stored], stored, pair)
        except InvalidAdapterError as error:
            problems.append(str(error))
        except UnsupportedAdapterError as error:
            raise UnsupportedAdapterError(f"{file.path}: {error}") from error
    if problems:
        raise InvalidAdapterError(
            f"expected tensors of the shapes and ranks that the config of {file.path} says, but {some(problems)}; "
            "pair the weights with the config that they were saved with"
        )
    return dict(sorted(modules.items()))


def _module(file: TensorFile, resolved: tuple[int, float], name: str, keys: ModuleKeys) -> StoredModule:
    A, B = file.tensors[keys.A], file.tensors[keys.B]
    rank, scaling = resolved
    if ".base_layer" in name:
        raise UnsupportedAdapterError(
            f"{name} lies inside an adapted module, as PEFT stores nn.MultiheadAttention, which florist cannot write "
            "back; leave it out of target_modules"
        )
    if len(A.shape) != len(B.shape) or len(A.shape) < 2 or any(size != 1 for size in B.shape[2:]):
        raise InvalidAdapterError(f"{name} has lora_A {A.shape} and lora_B {B.shape}")
    layout: ModuleLayout = LinearLayout()
    if keys.embedding:
        layout = EmbeddingLayout()
    elif len(A.shape) > 2:
        layout = ConvolutionLayout(A.shape[1], A.shape[2:])
        if B.shape[1] < A.shape[0] == rank and rank % B.shape[1] == 0:
            raise UnsupportedAdapterError(
                f"{name} is a grouped convolution (lora_A {A.shape}, lora_B {B.shape}), whose update is not one "
                "product B A; leave it out of target_modules"
            )
    if not A.shape[0] == B.shape[1] == rank:
        raise InvalidAdapterError(f"{name} has lora_A {A.shape} and lora_B {B.shape} where the config says rank {rank}")
    spec = _spec(B.shape[0], torch.Size(A.shape[1:]).numel(), rank, _dtype(A, B))
    read = partial(_read, file, name, keys, scaling, spec.dtype)
    return StoredModule(layout, spec, read, _bias_reader(file, name, keys.bias, B, scaling))


def _read(file: TensorFile, name: str, keys: ModuleKeys, scaling: float, dtype: torch.dtype) -> LoraFactor:
    return _factor(file, name, read_finite(file, keys.A), read_finite(file, keys.B), scaling=scaling, dtype=dtype)


class _LatestPair:
    """Reads the two halves of a stored pair once for all who ask for the same pair one after the other.

    It keeps one pair in memory.
    """

    def __init__(self, file: TensorFile) -> None:
        self.file = file
        self._lock = Lock()  # modules are read side by side
        self._keys: ModuleKeys | None = None
        self._halves: tuple[Tensor, Tensor] | None = None

    def read(self, keys: ModuleKeys) -> tuple[Tensor, Tensor]:
        """A and B, which are not checked, since a value that is not finite spoils its own expert alone."""
        with self._lock:
            if self._halves is None or self._keys != keys:
                self._halves = None  # makes room for the next
                self._halves = self.file.read(keys.A), self.file.read(keys.B)
                self._keys = keys
            return self._halves


def _experts(
    pairs: _LatestPair,
    resolved: Mapping[str, tuple[int, float]],
    module: str,
    parameters: tuple[str, ...],
    keys: Mapping[str, ModuleKeys],
) -> dict[str, StoredModule]:
    tensors = pairs.file.tensors
    for stored, own in keys.items():
        A, B = tensors[own.A], tensors[own.B]
        if not len(A.shape) == len(B.shape) == 2 or A.shape[0] != B.shape[1] or own.embedding or own.bias is not None:
            raise InvalidAdapterError(f"{stored} has lora_A {A.shape} and lora_B {B.shape}")
    rows = {stored: tensors[own.A].shape[0] for stored, own in keys.items()}
    modules: dict[str, StoredModule] = {}
    for stored, pair in resolve_pairs(resolved, module, parameters, rows).items():
        for expert in range(pair.experts):
            name = stored if pair.experts == 1 else f"{stored}[{expert}]"
            layout = ExpertLayout(stored, module, expert, pair.experts, parameters)
            modules[name] = _expert(pairs, name, keys[stored], pair, layout)
    return modules


def _expert(pairs: _LatestPair, name: str, keys: ModuleKeys, pair: ExpertPair, layout: ExpertLayout) -> StoredModule:
    stored_A, stored_B = pairs.file.tensors[keys.A], pairs.file.tensors[keys.B]
    spec = _spec(stored_B.shape[0], stored_A.shape[1], pair.rank, _dtype(stored_A, stored_B))

    def read() -> LoraFactor:
        A, B = split_expert(*pairs.read(keys), pair, layout.expert)
        require_finite(pairs.file, keys.A, A)
        require_finite(pairs.file, keys.B, B)
        return _factor(pairs.file, name, A, B, scaling=pair.scaling, dtype=spec.dtype)

    return StoredModule(layout, spec, read)


def _factor(file: TensorFile, name: str, A: Tensor, B: Tensor, *, scaling: float, dtype: torch.dtype) -> LoraFactor:
    return LoraFactor(B=_scaled(file, name, B.to(dtype).flatten(1), scaling), A=A.to(dtype).flatten(1))


def _scaled(file: TensorFile, name: str, tensor: Tensor, scaling: float) -> Tensor:
    """Multiply a finite tensor by the scaling of its module, in a dtype wider than half precision."""
    if scaling == 1:
        return tensor
    scaled = tensor * scaling
    if not is_finite(scaled):
        raise NonFiniteUpdateError(
            f"expected {name} of {file.path} times its scaling within the range of {tensor.dtype}, and the scaling "
            f"{scaling:.3g} overflows it; correct lora_alpha or alpha_pattern in its config, or leave this adapter out"
        )
    return scaled


@cache
def _spec(out_features: int, in_features: int, rank: int, dtype: torch.dtype) -> FactorSpec:
    # Every layer of every client has the same few, which are therefore shared.
    return FactorSpec(out_features, in_features, rank, dtype)


def _dtype(A: StoredTensor, B: StoredTensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (A.dtype, B.dtype) else torch.float32


def _bias_reader(
    file: TensorFile, name: str, key: str | None, B: StoredTensor, scaling: float
) -> Callable[[], Tensor] | None:
    if key is None:
        return None
    stored = file.tensors[key]
    if stored.shape != B.shape[:1]:
        raise InvalidAdapterError(f"{name} has lora_B.bias {stored.shape} where lora_B is {B.shape}")
    dtype = _dtype(stored, stored)
    return lambda: _scaled(file, name, read_finite(file, key).to(dtype), scaling)
