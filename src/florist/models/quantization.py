"""Base models that bitsandbytes holds in 4 or 8 bits (QLoRA, arXiv:2305.14314)."""

import importlib.util
from collections.abc import Mapping
from typing import Any, Literal

import torch
from peft import prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig, PreTrainedModel

from florist.errors import MissingDependencyError, UnsupportedHardwareError


def quantized_loading(bits: Literal["4bit", "8bit"], compute_dtype: torch.dtype) -> Mapping[str, Any]:
    """Return the arguments of ``from_pretrained`` that load a quantized model on the current CUDA device.

    Args:
        bits: 8 bits, or 4 bits in the NormalFloat data type with quantized scales.
        compute_dtype: The dtype of the matrix products of a model in 4 bits.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
        UnsupportedHardwareError: There is no CUDA device.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            f"model.quantization = {bits!r} needs bitsandbytes, which is not installed, and a CUDA device: "
            "pip install bitsandbytes"
        )
    if not torch.cuda.is_available():
        raise UnsupportedHardwareError(
            f"model.quantization = {bits!r}: expected a CUDA device, found none; leave quantization out"
        )
    return {
        "quantization_config": quantization_config(bits, compute_dtype),
        "device_map": {"": torch.cuda.current_device()},
    }


def quantization_config(bits: Literal["4bit", "8bit"], compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return the settings of QLoRA for 4 bits, or those of LLM.int8() (arXiv:2208.07339) for 8."""
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def prepared(model: PreTrainedModel) -> PreTrainedModel:
    """Make a quantized model ready for adapters: freeze it, and hold its norms and embeddings in float32.

    The values stay what they are. Gradient checkpointing stays off, because it would change how every client trains.
    """
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return model
