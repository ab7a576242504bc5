"""The linear layers of a model that transformers builds without its weights, for architectures unknown to florist."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from florist.errors import ModelError
from florist.planning.architectures import ModelShape, Shape


def built_shape(name: str, directory: Path) -> ModelShape:
    """Build a causal language model on torch's meta device and read its layers.

    Args:
        name: what to call the model.
        directory: has its ``config.json``; no weights are read, and no code that the directory brings is run.

    Raises:
        ModelError: transformers cannot build it.
    """
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, AttributeError, ImportError, TypeError) as error:
        raise ModelError(
            f"{name}: transformers cannot build the model ({' '.join(str(error).split())[:200]}); give the shapes "
            "yourself with --shapes, as q_proj=4096x4096*32"
        ) from error
    head = model.get_output_embeddings()
    linear: dict[str, Shape] = {}
    for module_name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            linear[module_name] = (module.out_features, module.in_features)
        elif isinstance(module, Conv1D):
            linear[module_name] = (module.weight.shape[1], module.weight.shape[0])
    total = sum(parameter.numel() for parameter in model.parameters())
    layers = int(getattr(config, "num_hidden_layers", 1))
    return ModelShape(name, linear, layers, total - sum(m * n for m, n in linear.values()))
