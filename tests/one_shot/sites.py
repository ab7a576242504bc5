"""Adapters of a few linear modules as PEFT would save them, quickly and without a model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from florist.checkpoint import open_adapter
from tests.builders import SHAPES


@dataclass(frozen=True)
class Site:
    """What one site trained.

    Attributes:
        rank: r.
        alpha: lora_alpha.
        examples: behind it.
        modules: those of `SHAPES` that it adapts.
        seed: of its values.
        dtype: as stored.
    """

    rank: int
    alpha: int
    examples: int = 1
    modules: tuple[str, ...] = tuple(SHAPES)
    seed: int = 0
    dtype: torch.dtype = torch.float32

    def save(self, directory: Path) -> Path:
        draw = torch.Generator().manual_seed(self.seed)
        tensors: dict[str, Tensor] = {}
        for module in self.modules:
            m, n = SHAPES[module]
            stem = f"base_model.model.{module}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(self.rank, n, generator=draw).to(self.dtype)
            tensors[f"{stem}.lora_B.weight"] = torch.randn(m, self.rank, generator=draw).to(self.dtype)
        directory.mkdir()
        config = {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "base_model_name_or_path": "org/base",
            "target_modules": list(self.modules),
        }
        (directory / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        return directory


def products(directory: Path) -> dict[str, Tensor]:
    """Dense float64 updates of a saved adapter; zero for a module of `SHAPES` that it lacks."""
    adapter = open_adapter(directory).adapter
    return {
        name: adapter[name].to(dtype=torch.float64).delta_weight()
        if name in adapter
        else torch.zeros(shape, dtype=torch.float64)
        for name, shape in SHAPES.items()
    }


def weighted(directories: Mapping[Path, int]) -> dict[str, Tensor]:
    """The oracle: ``sum_k n_k / N dW_k``, dense."""
    total = sum(directories.values())
    dense = {path: products(path) for path in directories}
    return {
        name: sum((count / total * dense[path][name] for path, count in directories.items()), start=torch.zeros(()))
        for name in SHAPES
    }
