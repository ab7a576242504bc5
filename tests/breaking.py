"""Spoiling a saved adapter."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Break = Callable[[Path], object]


def edit_config(**changes: object) -> Break:
    def edit(adapter: Path) -> None:
        file = adapter / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Break:
    def edit(adapter: Path) -> None:
        file = adapter / "adapter_model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return edit


def first(tensors: dict[str, torch.Tensor], half: str) -> str:
    return min(name for name in tensors if f"lora_{half}" in name)


def last(tensors: dict[str, torch.Tensor], half: str) -> str:
    # beartype looks at the first value of a mapping, which would read it long before the aggregation does.
    return max(name for name in tensors if f"lora_{half}" in name)


def copied(source: Path, target: Path, change: Break = lambda adapter: None) -> Path:
    shutil.copytree(source, target)
    change(target)
    return target
