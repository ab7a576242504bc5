"""The linear layers of a model, by name and shape, from the fields of its ``config.json`` alone.

An architecture is one entry of `ARCHITECTURES`. Names are those that transformers gives the modules, so that target
modules, and the ranks of a run, mean the same here as in training. Nothing is loaded for it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from florist.errors import ModelError

Shape = tuple[int, int]
"""(out_features, in_features) of a weight."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What planning needs to know of a model.

    Attributes:
        name: what the user called it.
        linear: the shape of every linear layer that PEFT's ``all-linear`` adapts, by the name of the module.
        layers: how many layers of the transformer there are.
        other_parameters: the numbers beside those: embeddings and heads. Norms and biases are left out.
    """

    name: str
    linear: Mapping[str, Shape]
    layers: int
    other_parameters: int

    @property
    def parameters(self) -> int:
        """The numbers of all weights that are counted."""
        return self.other_parameters + sum(m * n for m, n in self.linear.values())


@dataclass(frozen=True, slots=True)
class _Fields:
    """The sizes that architectures have in common, whatever their configurations call them."""

    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool

    @property
    def queries(self) -> int:
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        return self.key_value_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class _Architecture:
    """How one family names its layers.

    Attributes:
        prefix: the name of a layer, with ``{}`` for its number.
        modules: the linear modules of a layer, by their names in it.
        tied: whether input and output embeddings are one by default.
        square: the linear modules of hidden x hidden that are in no layer, by their full names.
    """

    prefix: str
    modules: Callable[[_Fields], Mapping[str, Shape]]
    tied: bool = False
    square: tuple[str, ...] = ()


def _llama(f: _Fields) -> Mapping[str, Shape]:
    return {
        "self_attn.q_proj": (f.queries, f.hidden),
        "self_attn.k_proj": (f.keys, f.hidden),
        "self_attn.v_proj": (f.keys, f.hidden),
        "self_attn.o_proj": (f.hidden, f.queries),
        "mlp.gate_proj": (f.intermediate, f.hidden),
        "mlp.up_proj": (f.intermediate, f.hidden),
        "mlp.down_proj": (f.hidden, f.intermediate),
    }


def _phi(f: _Fields) -> Mapping[str, Shape]:
    return {
        "self_attn.q_proj": (f.queries, f.hidden),
        "self_attn.k_proj": (f.keys, f.hidden),
        "self_attn.v_proj": (f.keys, f.hidden),
        "self_attn.dense": (f.hidden, f.queries),
        "mlp.fc1": (f.intermediate, f.hidden),
        "mlp.fc2": (f.hidden, f.intermediate),
    }


def _phi3(f: _Fields) -> Mapping[str, Shape]:
    return {
        "self_attn.qkv_proj": (f.queries + 2 * f.keys, f.hidden),
        "self_attn.o_proj": (f.hidden, f.queries),
        "mlp.gate_up_proj": (2 * f.intermediate, f.hidden),
        "mlp.down_proj": (f.hidden, f.intermediate),
    }


def _gpt2(f: _Fields) -> Mapping[str, Shape]:
    return {
        "attn.c_attn": (3 * f.hidden, f.hidden),
        "attn.c_proj": (f.hidden, f.hidden),
        "mlp.c_fc": (f.intermediate, f.hidden),
        "mlp.c_proj": (f.hidden, f.intermediate),
    }


def _gpt_neox(f: _Fields) -> Mapping[str, Shape]:
    return {
        "attention.query_key_value": (3 * f.hidden, f.hidden),
        "attention.dense": (f.hidden, f.hidden),
        "mlp.dense_h_to_4h": (f.intermediate, f.hidden),
        "mlp.dense_4h_to_h": (f.hidden, f.intermediate),
    }


def _opt(f: _Fields) -> Mapping[str, Shape]:
    square = {f"self_attn.{name}": (f.hidden, f.hidden) for name in ("k_proj", "v_proj", "q_proj", "out_proj")}
    return {**square, "fc1": (f.intermediate, f.hidden), "fc2": (f.hidden, f.intermediate)}


def _bert(f: _Fields) -> Mapping[str, Shape]:
    names = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    square = dict.fromkeys(names, (f.hidden, f.hidden))
    return {**square, "intermediate.dense": (f.intermediate, f.hidden), "output.dense": (f.hidden, f.intermediate)}


_LLAMA = _Architecture("model.layers.{}", _llama)
_GEMMA = _Architecture("model.layers.{}", _llama, tied=True)

ARCHITECTURES: Mapping[str, _Architecture] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3", "stablelm"), _LLAMA),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), _GEMMA),
    "phi": _Architecture("model.layers.{}", _phi),
    "phi3": _Architecture("model.layers.{}", _phi3),
    "gpt2": _Architecture("transformer.h.{}", _gpt2, tied=True),
    "gpt_neox": _Architecture("gpt_neox.layers.{}", _gpt_neox),
    "opt": _Architecture("model.decoder.layers.{}", _opt, tied=True),
    "bert": _Architecture("bert.encoder.layer.{}", _bert, tied=True, square=("bert.pooler.dense",)),
    "roberta": _Architecture("roberta.encoder.layer.{}", _bert, tied=True),
}
"""How to read a configuration, by its ``model_type``."""


def shape_of(name: str, config: Mapping[str, Any]) -> ModelShape:
    """Read the linear layers off a configuration.

    Args:
        name: what to call the model.
        config: the content of a ``config.json``.

    Raises:
        ModelError: its ``model_type`` is unknown here, or a field is missing or no positive whole number.
    """
    architecture = ARCHITECTURES.get(str(config.get("model_type")))
    if architecture is None:
        raise ModelError(
            f"{name}: expected a model_type out of {', '.join(sorted(ARCHITECTURES))}, got "
            f"{config.get('model_type')!r}; give the shapes yourself with --shapes, as q_proj=4096x4096*32"
        )
    fields = _fields(name, config, tied=architecture.tied)
    modules = architecture.modules(fields)
    linear = {
        f"{architecture.prefix.format(layer)}.{module}": shape
        for layer in range(fields.layers)
        for module, shape in modules.items()
    }
    linear |= dict.fromkeys(architecture.square, (fields.hidden, fields.hidden))
    embeddings = fields.vocabulary * fields.hidden * (1 if fields.tied else 2)
    return ModelShape(name, linear, fields.layers, embeddings)


_NAMES: Mapping[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer"),
    "hidden": ("hidden_size", "n_embd"),
    "heads": ("num_attention_heads", "n_head"),
    "intermediate": ("intermediate_size", "ffn_dim", "n_inner"),
    "vocabulary": ("vocab_size",),
}


def _fields(name: str, config: Mapping[str, Any], *, tied: bool) -> _Fields:
    def size(field: str, default: int | None = None) -> int:
        keys = _NAMES.get(field, (field,))
        value = next((config[key] for key in keys if config.get(key) is not None), default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(
                f"{name}: expected {' or '.join(keys)} as a positive whole number, got {value!r}; complete the "
                "configuration, or give the shapes yourself with --shapes"
            )
        return value

    hidden, heads = size("hidden"), size("heads")
    return _Fields(
        layers=size("layers"),
        hidden=hidden,
        heads=heads,
        key_value_heads=size("num_key_value_heads", heads),
        head_dim=size("head_dim", hidden // heads),
        intermediate=size("intermediate", 4 * hidden),
        vocabulary=size("vocabulary"),
        tied=bool(config.get("tie_word_embeddings", tied)),
    )
