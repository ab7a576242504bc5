"""Tiny mixtures of experts, with the experts fused into stacked parameters."""

from typing import Any

import torch
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 12,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 50,
    "num_experts": 3,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}


def tiny_qwen3_moe() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**_SIZES)).eval()


def tiny_mixtral() -> PreTrainedModel:
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**_SIZES)).eval()


def tiny_gpt_oss() -> PreTrainedModel:
    """Stores its experts transposed: (experts, in, out)."""
    torch.manual_seed(0)
    return GptOssForCausalLM(GptOssConfig(**_SIZES, rope_parameters={"rope_type": "default", "rope_theta": 1e4})).eval()
