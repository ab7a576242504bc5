"""A tiny random Llama, adapters of it as PEFT itself saves them, and what PEFT makes of those that florist writes."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from florist.checkpoint import EncodedAdapter, write_adapter

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOKENS = torch.arange(24).reshape(2, 12) % 50


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    """The same weights at every call."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 50,
        "max_position_embeddings": 32,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | changes)).eval()


def trained(base: PreTrainedModel | torch.nn.Module, config: LoraConfig, seed: int) -> PeftModel:
    """An adapter whose every trainable parameter is random, as if it had been trained."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def saved(model: PeftModel, directory: Path) -> Path:
    """What save_pretrained writes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory)
    return directory


def deltas(model: PeftModel) -> dict[str, torch.Tensor]:
    """PEFT's own dense updates, by module name."""
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def written(encoded: EncodedAdapter, directory: Path) -> Path:
    directory.mkdir()
    write_adapter(directory, encoded)
    return directory


def loaded(base: torch.nn.Module, directory: Path, **options: Any) -> PeftModel:
    """What PEFT makes of it; that a key is missing or unexpected is but a warning to PEFT, and an error here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*(missing|unexpected).*keys")
        return PeftModel.from_pretrained(base, directory, **options).eval()  # type: ignore[arg-type]  # any module will do


def edit_config(directory: Path, **changes: Any) -> Path:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory


def edit_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    path = directory / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)
    return directory
