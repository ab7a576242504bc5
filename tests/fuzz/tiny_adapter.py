"""A tiny adapter as PEFT saves it, which is made without florist: 2 modules of 4 x 3 at rank 2."""

from typing import Any

import torch
from safetensors.torch import save

PREFIX = "base_model.model."
MODULES = ("layers.0.q", "layers.1.q")
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": "org/base",
    "task_type": "CAUSAL_LM",
    "r": 2,
    "lora_alpha": 4,
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {"layers.1.q": 3},
    "target_modules": ["q"],
    "modules_to_save": None,
    "bias": "none",
}


def tensors(seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"A": (2, 3), "B": (4, 2)}
    return {
        f"{PREFIX}{module}.lora_{half}.weight": torch.randn(shape, generator=draw)
        for module in MODULES
        for half, shape in shapes.items()
    }


WEIGHTS = save(tensors(0))
