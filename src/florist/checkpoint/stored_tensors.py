"""The tensors that PEFT stores for an adapter: its factors, by the layout of their modules, and what lies beside."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from florist.checkpoint.experts import is_stacked_when_loaded, join_experts
from florist.checkpoint.file_size import file_bytes
from florist.checkpoint.keys import PREFIX
from florist.checkpoint.layout import (
    LINEAR,
    AdapterLayout,
    ConvolutionLayout,
    EmbeddingLayout,
    ExpertLayout,
    ModuleLayout,
)
from florist.checkpoint.saved_modules import stored_name
from florist.errors import InvalidAdapterError
from florist.factors import AdapterState, LoraFactor
from florist.rounds import SavedParameters


def stored_ranks(ranks: Mapping[str, int], layout: AdapterLayout) -> dict[str, int]:
    """The rank at which each module is stored: at least 1, since PEFT can store no less.

    The adapted parameters of a module share the largest rank among them, and so do all modules that PEFT stacks when it
    loads them.
    """
    largest: dict[str, int] = {}
    for name, rank in ranks.items():
        group = _rank_group(name, layout.module(name))
        largest[group] = max(1, rank, largest.get(group, 1))
    return {name: largest[_rank_group(name, layout.module(name))] for name in ranks}


def _rank_group(name: str, layout: ModuleLayout) -> str:
    """What shares one rank in the file; no module has an empty name."""
    if isinstance(layout, ExpertLayout):
        return layout.module
    return "" if is_stacked_when_loaded(name) else name


def stored_bytes(
    shapes: Mapping[str, tuple[int, int]],
    ranks: Mapping[str, int],
    *,
    layout: AdapterLayout = LINEAR,
    dtype: torch.dtype = torch.float32,
) -> int:
    """The bytes of all factors of these ranks as `encode` stores them with `Export.PER_MODULE`.

    Args:
        shapes: (out_features, in_features) of each module.
        ranks: the rank of each module.
        layout: how the adapter is stored.
        dtype: the dtype of the stored tensors.
    """
    stored = stored_ranks(ranks, layout)
    return sum(stored[name] * sum(shape) for name, shape in shapes.items()) * dtype.itemsize


def written_bytes(
    shapes: Mapping[str, tuple[int, int]],
    ranks: Mapping[str, int],
    *,
    layout: AdapterLayout,
    saved_shapes: Mapping[str, tuple[int, ...]],
    additive: Collection[str],
    dtype: torch.dtype,
) -> int:
    """The exact size of adapter_model.safetensors as `encode` and `write_adapter` write it with `Export.PER_MODULE`.

    Args:
        shapes: (out_features, in_features) of each module.
        ranks: the rank of each module.
        layout: how the adapter is stored.
        saved_shapes: the shapes of the parameters that are saved whole, by name.
        additive: the modules with an output bias.
        dtype: the dtype of the stored tensors.

    Cost: that of arranging tensors without numbers, about 50 microseconds a module (448 modules).
    """

    # Tensors on this device have shapes and no numbers, so that the code that writes also says what it would write.
    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    adapter = AdapterState.of(
        {name: LoraFactor(empty(m, ranks[name]), empty(ranks[name], n)) for name, (m, n) in shapes.items()}
    )
    tensors = adapter_tensors(
        adapter,
        layout,
        stored_ranks(ranks, layout),
        saved_parameters={name: empty(*shape) for name, shape in saved_shapes.items()},
        additive={name: empty(shapes[name][0]) for name in additive},
    )
    return file_bytes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, dtype)


def adapter_tensors(
    adapter: AdapterState,
    layout: AdapterLayout,
    ranks: Mapping[str, int],
    *,
    saved_parameters: SavedParameters,
    additive: SavedParameters,
) -> dict[str, Tensor]:
    """Everything that the file of an adapter holds, by the names that PEFT gives it.

    Args:
        adapter: module name -> factor.
        layout: how to store the factors.
        ranks: the rank at which each module is stored, from `stored_ranks` or larger.
        saved_parameters: stored whole, by their name in the model.
        additive: module name -> what the update adds to the module's output, stored as ``lora_B.bias``.

    Raises:
        InvalidAdapterError: a factor does not fit its layout, some of a parameter's experts are missing, or `additive`
            names a module that the adapter lacks.
    """
    whole = {PREFIX + stored_name(name, adapter): tensor for name, tensor in saved_parameters.items()}
    return factor_tensors(adapter, layout, ranks) | bias_tensors(adapter, additive) | whole


def factor_tensors(adapter: AdapterState, layout: AdapterLayout, ranks: Mapping[str, int]) -> dict[str, Tensor]:
    """Every factor, padded with zeros, under the names that PEFT gives its halves.

    Args:
        adapter: module name -> factor.
        layout: how to store the factors.
        ranks: the rank at which each module is stored, from `stored_ranks` or larger.

    Raises:
        InvalidAdapterError: a factor does not fit its layout, or some of a parameter's experts are missing.
    """
    tensors: dict[str, Tensor] = {}
    experts: dict[str, dict[int, LoraFactor]] = {}
    for name in adapter:
        own = layout.module(name)
        factor = _padded(adapter[name], ranks[name])
        if isinstance(own, ExpertLayout):
            experts.setdefault(own.stored, {})[own.expert] = factor
            if len(experts[own.stored]) == own.experts:
                stacked = experts[own.stored]
                tensors |= _pair(own.stored, join_experts([stacked[expert] for expert in sorted(stacked)]))
        else:
            tensors |= _module_tensors(name, factor, own)
    incomplete = sorted(stored for stored in experts if f"{PREFIX}{stored}.lora_A.weight" not in tensors)
    if incomplete:
        raise InvalidAdapterError(f"expected all experts of {', '.join(incomplete)}, which PEFT stores in one pair")
    return tensors


def bias_tensors(adapter: AdapterState, additive: SavedParameters) -> dict[str, Tensor]:
    """``lora_B.bias`` of every module, or of none, since PEFT knows no mixture.

    Raises:
        InvalidAdapterError: `additive` names a module that the adapter lacks.
    """
    unknown = sorted(set(additive) - set(adapter))
    if unknown:
        raise InvalidAdapterError(f"expected additive terms of written modules only, got one for {', '.join(unknown)}")
    if not additive:
        return {}
    return {
        f"{PREFIX}{name}.lora_B.bias": additive[name] if name in additive else torch.zeros(spec.out_features)
        for name, spec in adapter.specs.items()
    }


def _padded(factor: LoraFactor, rank: int) -> LoraFactor:
    """The same product at a higher rank, with zero columns in B and zero rows in A."""
    missing = rank - factor.rank
    if missing == 0:
        return factor
    B = torch.cat([factor.B, factor.B.new_zeros(factor.B.shape[0], missing)], dim=1)
    A = torch.cat([factor.A, factor.A.new_zeros(missing, factor.A.shape[1])], dim=0)
    if factor.rank == 0:
        A[0] = A.shape[1] ** -0.5
    return LoraFactor(B, A)


def _module_tensors(name: str, factor: LoraFactor, layout: ModuleLayout) -> dict[str, Tensor]:
    if isinstance(layout, EmbeddingLayout):
        stem = PREFIX + name
        return {f"{stem}.lora_embedding_A": factor.A, f"{stem}.lora_embedding_B": factor.B}
    if isinstance(layout, ConvolutionLayout):
        expected = layout.in_channels * torch.Size(layout.kernel).numel()
        if factor.A.shape[1] != expected:
            raise InvalidAdapterError(
                f"expected in_features {expected} of the convolution {name} ({layout}), got A {tuple(factor.A.shape)}"
            )
        return _tensors(
            name,
            A=factor.A.reshape(-1, layout.in_channels, *layout.kernel),
            B=factor.B.reshape(*factor.B.shape, *[1] * len(layout.kernel)),
        )
    return _pair(name, factor)


def _pair(name: str, factor: LoraFactor) -> dict[str, Tensor]:
    return _tensors(name, A=factor.A, B=factor.B)


def _tensors(name: str, *, A: Tensor, B: Tensor) -> dict[str, Tensor]:
    return {f"{PREFIX}{name}.lora_A.weight": A, f"{PREFIX}{name}.lora_B.weight": B}
