"""One adapter of a live PEFT model: its factors, read from the model's layers, and whether they alone are its update.

A layer is asked for the scaling that it really uses. That is what `set_scale` made of it, and what rsLoRA,
`rank_pattern` and `alpha_pattern` made of it before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import MultiheadAttention, ParamWrapper
from torch import Tensor

from florist.checkpoint import ConvolutionLayout, EmbeddingLayout, LinearLayout, ModuleLayout
from florist.checkpoint.settings import require_plain_lora
from florist.errors import UnsupportedAdapterError
from florist.factors import AdapterState, FactorSpec, LoraFactor
from florist.linalg.thin_svd import working_dtype


@dataclass(frozen=True, slots=True, eq=False)
class LiveAdapter:
    """One adapter of a live model.

    Attributes:
        name: what the model calls it.
        config: its settings.
        adapter: module name in the base model -> factor, read at each access on the device of the layer; float32, or
            float64 where the layer has that. The scaling is folded into B.
        layouts: how each factor is held, which is how PEFT stores it.
        additive: module name -> ``s b`` for its ``lora_B.bias`` b.
    """

    name: str
    config: LoraConfig
    adapter: AdapterState
    layouts: Mapping[str, ModuleLayout]
    additive: Mapping[str, Tensor]


def read_adapter(model: PeftModel, name: str) -> LiveAdapter:
    """Look at one adapter of a live model. Nothing is copied before a factor is asked for.

    Raises:
        UnsupportedAdapterError: the factors alone are not the update, or the update is held by what all adapters share.
    """
    config: Any = model.peft_config[name]
    where = f"the adapter {name!r}"
    require_plain_lora(where, config.to_dict())
    _require_expressible(where, config)
    specs: dict[str, FactorSpec] = {}
    layouts: dict[str, ModuleLayout] = {}
    additive: dict[str, Tensor] = {}
    layers = lora_layers(model, name)
    for module, layer in layers.items():
        layouts[module] = _layout(where, module, layer, name)
        B, A = halves(layer, name)
        specs[module] = FactorSpec(B.shape[0], A.shape[1:].numel(), A.shape[0], _precision(B))
        bias = output_bias(layer, name)
        if bias is not None:
            additive[module] = bias.detach().to(_precision(bias)) * layer.scaling[name]
    return LiveAdapter(
        name, config, AdapterState(specs, lambda module: _factor(layers[module], name)), layouts, additive
    )


def lora_layers(model: PeftModel, name: str) -> dict[str, Any]:
    """The layers that hold an adapter, by the names of their modules in the base model."""
    return {
        module: layer
        for module, layer in model.get_base_model().named_modules()
        if isinstance(layer, LoraLayer) and (name in layer.lora_A or name in layer.lora_embedding_A)
    }


def halves(layer: Any, name: str) -> tuple[Tensor, Tensor]:
    """The parameters B and A of an adapter in one layer, as PEFT shapes them."""
    if name in layer.lora_embedding_A:
        return layer.lora_embedding_B[name], layer.lora_embedding_A[name]
    return layer.lora_B[name].weight, layer.lora_A[name].weight


def output_bias(layer: Any, name: str) -> Tensor | None:
    """The ``lora_B.bias`` of an adapter in one layer; None where there is none."""
    return None if name in layer.lora_embedding_A else layer.lora_B[name].bias


@torch.no_grad()
def _factor(layer: Any, name: str) -> LoraFactor:
    B, A = (half.detach().flatten(1) for half in halves(layer, name))
    dtype = _precision(B)
    return LoraFactor(B.to(dtype) * layer.scaling[name], A.to(dtype))


def _precision(tensor: Tensor) -> torch.dtype:
    return working_dtype(tensor.dtype)


def _require_expressible(where: str, config: LoraConfig) -> None:
    saved = "save the adapters and combine these with `florist aggregate"
    if config.bias != "none":
        raise UnsupportedAdapterError(
            f"{where} trains biases of the base model (bias = {config.bias!r}), which all adapters of a live model "
            f"share, so that no weight can scale them; train with bias = 'none', or {saved} --average-full`"
        )
    if config.target_parameters:
        raise UnsupportedAdapterError(
            f"{where} adapts parameters (target_parameters = {list(config.target_parameters)}), which a live model "
            f"holds in nested layers; {saved}`"
        )
    if config.trainable_token_indices:
        raise UnsupportedAdapterError(
            f"{where} trains rows of an embedding (trainable_token_indices), which replace those of the base, so that "
            f"there is no sum of them; {saved}`, which takes their mean"
        )
    if config.ensure_weight_tying:
        raise UnsupportedAdapterError(
            f"{where} ties the adapters of tied layers (ensure_weight_tying): two modules share one factor, which the "
            "sum would tear apart; train it without"
        )


def _layout(where: str, module: str, layer: Any, name: str) -> ModuleLayout:
    if isinstance(layer, MultiheadAttention | ParamWrapper) or "base_layer" in module.split("."):
        raise UnsupportedAdapterError(
            f"{where} adapts {module} inside another adapted module, as PEFT does with nn.MultiheadAttention and "
            "with target_parameters, which florist cannot write; leave it out of target_modules"
        )
    variant = layer.lora_variant.get(name)
    if variant is not None:
        raise UnsupportedAdapterError(
            f"{where} has {type(variant).__name__} in {module}, whose update is not s B A; train it as plain LoRA"
        )
    B, A = halves(layer, name)
    if B.is_meta or A.is_meta:
        raise UnsupportedAdapterError(
            f"{where} has no values for {module} in this process (they are on the meta device, as those that are "
            "offloaded); load the model without offloading"
        )
    rank = layer.r[name]
    if A.ndim > 2 and B.ndim == A.ndim and B.shape[1] < A.shape[0] == rank:
        raise UnsupportedAdapterError(
            f"{where} adapts the grouped convolution {module}, whose update is not one product B A; leave it out of "
            "target_modules"
        )
    if not (B.ndim == A.ndim >= 2 and B.shape[1] == A.shape[0] == rank):
        raise UnsupportedAdapterError(
            f"{where} holds lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)} for {module}, where its rank is {rank}:"
            " this is a part of them, as FSDP and DeepSpeed keep; gather the model first"
        )
    if name in layer.lora_embedding_A:
        return EmbeddingLayout()
    return LinearLayout() if A.ndim == 2 else ConvolutionLayout(A.shape[1], tuple(A.shape[2:]))
