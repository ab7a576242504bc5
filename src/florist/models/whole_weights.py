"""Weights that are trained themselves, and the adapter that leads to them from the pristine weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from florist.errors import ModelError
from florist.factors import AdapterState, LoraFactor
from florist.rounds import SavedParameters, weight_name


@dataclass(frozen=True, slots=True, eq=False)
class PristineWeight:
    """The weight of one module before any training.

    Attributes:
        value: A copy of the weight, in the orientation in which the module stores it.
        transposed: Whether the module stores (in_features, out_features), as the Conv1D of GPT-2 does.
    """

    value: Tensor
    transposed: bool


def trainable_weights(base: nn.Module, layers: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    """Return the weights of PEFT's LoRA layers, by the names under which they travel.

    Args:
        base: The whole model.
        layers: For each module, the LoRA layer around it.

    Raises:
        ModelError: A weight is quantised, is no matrix, or is shared with another module.
    """
    named = [parameter for _, parameter in base.named_parameters(remove_duplicate=False)]
    weights: dict[str, nn.Parameter] = {}
    for module, layer in layers.items():
        weight = layer.get_base_layer().weight
        if weight.ndim != 2 or not weight.is_floating_point() or sum(other is weight for other in named) != 1:
            raise ModelError(
                f"{module}: expected a weight matrix of its own in floating point to train it whole, got "
                f"{tuple(weight.shape)} in {weight.dtype}, shared or not; train adapters instead, or leave the module "
                "out of [lora] target_modules"
            )
        weights[weight_name(module)] = weight
    return weights


def pristine_weights(layers: Mapping[str, Any]) -> dict[str, PristineWeight]:
    """Return copies of the weights of PEFT's LoRA layers, by module name.

    Cost: as much memory as the weights take.
    """
    return {
        module: PristineWeight(
            layer.get_base_layer().weight.detach().clone().cpu(), getattr(layer, "fan_in_fan_out", False)
        )
        for module, layer in layers.items()
    }


def difference(pristine: Mapping[str, PristineWeight], trained: SavedParameters) -> AdapterState:
    """Return the adapter that adds to the pristine weights what makes them the trained ones, in float32.

    It is not compressed: A is the identity.
    """
    factors: dict[str, LoraFactor] = {}
    for module, before in pristine.items():
        moved = trained[weight_name(module)].cpu().float() - before.value.float()
        dense = moved.T.contiguous() if before.transposed else moved
        factors[module] = LoraFactor(dense, torch.eye(dense.shape[1]))
    return AdapterState.of(factors)
