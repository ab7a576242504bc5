"""Configurations of models by a short name: the fields of their ``config.json`` that shapes depend on.

They are those that the models' authors publish. A configuration of one's own goes before any of them.
"""

from collections.abc import Mapping
from typing import Any


def _preset(
    model_type: str,
    layers: int,
    hidden: int,
    heads: tuple[int, int],
    intermediate: int,
    *,
    vocabulary: int,
    head_dim: int | None = None,
    tied: bool = False,
) -> Mapping[str, Any]:
    """The fields of a configuration; `heads` are those of queries, and those of keys and values."""
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "head_dim": head_dim,
        "tie_word_embeddings": tied,
    }


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tinyllama": _preset("llama", 22, 2048, (32, 4), 5632, vocabulary=32000),
    "llama-7b": _preset("llama", 32, 4096, (32, 32), 11008, vocabulary=32000),
    "llama-3.2-1b": _preset("llama", 16, 2048, (32, 8), 8192, vocabulary=128256, head_dim=64, tied=True),
    "llama-3.2-3b": _preset("llama", 28, 3072, (24, 8), 8192, vocabulary=128256, head_dim=128, tied=True),
    "llama-3.1-8b": _preset("llama", 32, 4096, (32, 8), 14336, vocabulary=128256),
    "llama-3.1-70b": _preset("llama", 80, 8192, (64, 8), 28672, vocabulary=128256),
    "mistral-7b": _preset("mistral", 32, 4096, (32, 8), 14336, vocabulary=32000),
    "qwen2.5-0.5b": _preset("qwen2", 24, 896, (14, 2), 4864, vocabulary=151936, tied=True),
    "qwen2.5-1.5b": _preset("qwen2", 28, 1536, (12, 2), 8960, vocabulary=151936, tied=True),
    "qwen2.5-7b": _preset("qwen2", 28, 3584, (28, 4), 18944, vocabulary=152064),
    "qwen3-0.6b": _preset("qwen3", 28, 1024, (16, 8), 3072, vocabulary=151936, head_dim=128, tied=True),
    "qwen3-1.7b": _preset("qwen3", 28, 2048, (16, 8), 6144, vocabulary=151936, head_dim=128, tied=True),
    "qwen3-4b": _preset("qwen3", 36, 2560, (32, 8), 9728, vocabulary=151936, head_dim=128, tied=True),
    "qwen3-8b": _preset("qwen3", 36, 4096, (32, 8), 12288, vocabulary=151936, head_dim=128),
    "gemma-2-2b": _preset("gemma2", 26, 2304, (8, 4), 9216, vocabulary=256000, head_dim=256, tied=True),
    "gemma-2-9b": _preset("gemma2", 42, 3584, (16, 8), 14336, vocabulary=256000, head_dim=256, tied=True),
    "phi-3-mini": _preset("phi3", 32, 3072, (32, 32), 8192, vocabulary=32064),
    "smollm2-135m": _preset("llama", 30, 576, (9, 3), 1536, vocabulary=49152, tied=True),
    "smollm2-360m": _preset("llama", 32, 960, (15, 5), 2560, vocabulary=49152, tied=True),
    "smollm2-1.7b": _preset("llama", 24, 2048, (32, 32), 8192, vocabulary=49152, tied=True),
}
