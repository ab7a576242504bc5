from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from .adapters import LINEARS, saved, tiny_llama, trained


@pytest.fixture
def client(tmp_path: Path) -> Callable[..., Path]:
    """Save a client's adapter of the tiny Llama: ``client("a", r=4, lora_alpha=8)``."""

    def save(name: str, *, seed: int = 1, **settings: Any) -> Path:
        config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": LINEARS, "task_type": "CAUSAL_LM"} | settings)
        return saved(trained(tiny_llama(), config, seed), tmp_path / name)

    return save
