"""A base model held in 4 or 8 bits, by bitsandbytes (QLoRA, arXiv:2305.14314)."""

import importlib.util
from collections.abc import Mapping
from typing import Any, Literal

import torch
from peft import prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig, PreTrainedModel

from florist.errors import MissingDependencyError, UnsupportedHardwareError


def quantized_loading(bits: Literal["4bit", "8bit"], compute_dtype: torch.dtype) -> Mapping[str, Any]:
    """What ``from_pretrained`` takes to load a quantized model on the current CUDA device.

    Args:
        bits: 4 with the NormalFloat data type, its scales quantized as well, or 8.
        compute_dtype: of the matrix products of a 4-bit model.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
        UnsupportedHardwareError: there is no CUDA device.
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
    """The settings of QLoRA for 4 bits, and of LLM.int8() (arXiv:2208.07339) for 8."""
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def prepared(model: PreTrainedModel) -> PreTrainedModel:
    """A quantized model ready for adapters: frozen, with norms and embeddings in float32.

    Their values stay what they are. Gradient checkpointing is left off, which would change how every client trains.
    """
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return model
