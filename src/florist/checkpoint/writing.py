"""Write an adapter as PEFT does, with a rank for every module or one rank for all modules."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from florist.checkpoint.experts import is_stacked_when_loaded
from florist.checkpoint.file_size import METADATA, file_bytes
from florist.checkpoint.keys import TRAINED_ROWS
from florist.checkpoint.layout import LINEAR, AdapterLayout, ExpertLayout
from florist.checkpoint.patterns import rank_pattern
from florist.checkpoint.reading import CONFIG_NAME, WEIGHTS_NAME
from florist.checkpoint.saved_modules import CLASSIFIER_HEADS, modules_to_save, trained_biases
from florist.checkpoint.stored_tensors import adapter_tensors, stored_ranks
from florist.errors import ConfigurationError, InvalidAdapterError, NonFiniteUpdateError
from florist.factors import AdapterState
from florist.files.tensors import save_tensors
from florist.rounds import NOTHING, SavedParameters

_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The numbers that vLLM accepts as ``--max-lora-rank``."""


class Export(Enum):
    """How ranks are written.

    >>> import florist
    >>> florist.Export("uniform") is florist.Export.UNIFORM
    True
    >>> one, two = (torch.ones(4, rank) for rank in (1, 2))
    >>> adapter = AdapterState.of({"a": florist.LoraFactor(one, one.T), "b": florist.LoraFactor(two, two.T)})
    >>> for export in florist.Export:
    ...     encoded = encode(adapter, export=export)
    ...     export.value, encoded.config["r"], encoded.config["rank_pattern"], encoded.nbytes
    ('per-module', 2, {'a': 1}, 96)
    ('uniform', 2, {}, 128)
    """

    PER_MODULE = "per-module"
    """Each module has its own rank, which takes the fewest bytes. PEFT, transformers and vLLM read it right."""
    UNIFORM = "uniform"
    """Every module is padded with zeros to one rank, and there are no patterns: servers that know one rank read it."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedAdapter:
    """An adapter as PEFT stores it.

    Attributes:
        config: the content of adapter_config.json. `peft.LoraConfig` takes it as keywords.
        tensors: the content of adapter_model.safetensors.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def file_bytes(self) -> int:
        """The size of adapter_model.safetensors, with its header."""
        dtype = next(iter(self.tensors.values())).dtype
        return file_bytes({name: tuple(tensor.shape) for name, tensor in self.tensors.items()}, dtype)


def encode(
    adapter: AdapterState,
    *,
    layout: AdapterLayout = LINEAR,
    saved_parameters: SavedParameters = NOTHING,
    additive: SavedParameters = NOTHING,
    base_model: str | None = None,
    revision: str | None = None,
    task_type: str | None = None,
    auto_mapping: Mapping[str, Any] | None = None,
    export: Export = Export.PER_MODULE,
    pad_rank_to: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> EncodedAdapter:
    """Make the config and the tensors from which PEFT builds exactly this adapter.

    `r` and `lora_alpha` are the largest rank, and `alpha_pattern` equals `rank_pattern`: every scaling is exactly 1. A
    module of rank 0 is written with rank 1 and B = 0 (a missing module would leave PEFT's parameters uninitialised
    under `low_cpu_mem_usage`); its A is not zero, so that it can be trained on. The experts of one module's adapted
    parameters share the largest rank among them: PEFT knows one for each parameter, and the file does not say which
    parameter it stores where. So do the modules that PEFT stacks when it loads them (`is_stacked_when_loaded`), and
    `r` is then their rank.

    `target_modules` lists full module names. PEFT also takes a name for the end of a longer one; a module of the base
    that ends in a name written here, and is not written itself, would get an untrained adapter, which adds zero.

    Args:
        adapter: module name -> factor, with the scaling folded in.
        layout: how to store the factors, from the adapters that were read.
        saved_parameters: parameters that are stored whole, by their name in the model.
        additive: module name -> what the update adds to the module's output, stored as ``lora_B.bias``.
        base_model: the directory or hub id of the base model.
        revision: the revision of the base model.
        task_type: PEFT's name of the task: CAUSAL_LM, SEQ_CLS.
        auto_mapping: PEFT's name of the base model's class, which `AutoPeftModel` builds where there is no task type.
        export: whether every module has its own rank.
        pad_rank_to: the rank of all modules with `Export.UNIFORM`; None for the largest rank.
        dtype: the dtype of all tensors, which is float16, bfloat16, float32 or float64.

    Raises:
        ConfigurationError: `pad_rank_to` is less than the largest rank, or is given without `Export.UNIFORM`.
        InvalidAdapterError: there is no module, or a factor or parameter does not fit the layout.
        NonFiniteUpdateError: a value is NaN or infinite, or `dtype` makes it infinite.
    """
    if not adapter:
        raise InvalidAdapterError("expected at least one module to write: PEFT cannot load an adapter without any")
    ranks = stored_ranks({name: spec.rank for name, spec in adapter.specs.items()}, layout)
    if pad_rank_to is not None:
        _require_padding(pad_rank_to, max(ranks.values()), export)
    if export is Export.UNIFORM:
        ranks = dict.fromkeys(ranks, pad_rank_to or max(ranks.values()))
    usual = next((rank for name, rank in ranks.items() if is_stacked_when_loaded(name)), max(ranks.values()))
    tensors = adapter_tensors(adapter, layout, ranks, saved_parameters=saved_parameters, additive=additive)
    pattern = rank_pattern(_config_names(layout, ranks), default=usual)
    saved = modules_to_save(saved_parameters, layout)
    if any(name.endswith(TRAINED_ROWS) for name in saved_parameters) and not layout.trainable_token_indices:
        raise InvalidAdapterError(
            "expected trainable_token_indices in the layout of an adapter with trained token rows"
        )
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "revision": revision,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
        "use_rslora": False,
        "use_dora": False,
        "lora_dropout": 0.0,
        "bias": trained_biases(saved_parameters, saved, adapter),
        "lora_bias": bool(additive),
        "fan_in_fan_out": layout.fan_in_fan_out,
        "init_lora_weights": True,
        "target_modules": sorted(name for name in adapter if not isinstance(layout.module(name), ExpertLayout)),
        "target_parameters": list(layout.target_parameters) or None,
        "modules_to_save": saved or None,
        "trainable_token_indices": layout.trainable_token_indices,
    }
    if auto_mapping is not None:
        config["auto_mapping"] = dict(auto_mapping)
    if layout.tied_parameters:
        config["ensure_weight_tying"] = True
    return EncodedAdapter(config, {key: _stored(key, tensor, dtype) for key, tensor in sorted(tensors.items())})


def write_adapter(directory: Path, encoded: EncodedAdapter) -> None:
    """Write adapter_config.json and adapter_model.safetensors into an existing directory.

    The caller makes the directory with `outputs.new_directory`, so that the adapter appears whole or not at all.

    Raises:
        UnwritableOutputError, OSError: as `save_tensors`.
    """
    text = json.dumps(encoded.config, indent=2, sort_keys=True)
    (directory / CONFIG_NAME).write_text(f"{text}\n", encoding="utf-8")
    save_tensors(encoded.tensors, directory / WEIGHTS_NAME, METADATA)


def _require_padding(rank: int, largest: int, export: Export) -> None:
    if export is not Export.UNIFORM:
        raise ConfigurationError(
            f"pad_rank_to goes with export uniform, got {export.value}: a rank for every module is padded to nothing"
        )
    if rank < largest:
        raise ConfigurationError(
            f"expected pad_rank_to to be at least the largest rank, {largest}, got {rank}; pad to {largest} or more, "
            "or keep fewer directions with a smaller max_rank"
        )


def _config_names(layout: AdapterLayout, ranks: Mapping[str, int]) -> dict[str, int]:
    """The ranks by the names that PEFT matches with its patterns, which are modules or adapted parameters."""
    named: dict[str, int] = {}
    for name, rank in ranks.items():
        own = layout.module(name)
        names = [f"{own.module}.{each}" for each in own.parameters] if isinstance(own, ExpertLayout) else [name]
        named |= dict.fromkeys(names, rank)
    return named


def _stored(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    stored = tensor.detach().to("cpu", dtype).contiguous()
    if not bool(torch.isfinite(stored).all()):
        reason = "NaN or infinity" if not bool(torch.isfinite(tensor).all()) else f"values beyond the range of {dtype}"
        raise NonFiniteUpdateError(
            f"expected finite values to write, got {reason} in {key}; write bfloat16 or float32, or look for the "
            "client whose training diverged"
        )
    return stored


def serving_notes(encoded: EncodedAdapter) -> tuple[str, ...]:
    """What a person should know before serving the adapter with something other than PEFT; often nothing."""
    return (*_rank_notes(encoded), *_vllm_refusals(encoded))


def _rank_notes(encoded: EncodedAdapter) -> list[str]:
    rank = max([encoded.config["r"], *encoded.config["rank_pattern"].values()])
    notes: list[str] = []
    if encoded.config["rank_pattern"]:
        notes.append(
            "ranks differ per module, which PEFT, transformers and vLLM read right; llama.cpp's converter would scale "
            "the smaller modules up, SGLang refuses the adapter, and TGI drops or scales modules wrongly: for those, "
            "write --export uniform"
        )
    elif rank != (padded := _padded_by_tgi(rank)):
        notes.append(
            f"TGI pads rank {rank} to {padded} and then scales all module types but the first by {rank}/{padded}: for "
            f"TGI, write --export uniform --pad-rank-to {padded}"
        )
    enough = next((allowed for allowed in _VLLM_RANKS if allowed >= rank), None)
    if enough is None:
        notes.append(f"rank {rank} is above vLLM's largest, {_VLLM_RANKS[-1]}; set --max-rank")
    elif enough > 16:
        notes.append(f"vLLM needs --max-lora-rank {enough}; its default is 16")
    return notes


def _padded_by_tgi(rank: int) -> int:
    """The rank at which TGI's kernels take an adapter, with one GPU to a model."""
    return 8 if rank <= 8 else -(-rank // 16) * 16


def _vllm_refusals(encoded: EncodedAdapter) -> list[str]:
    config, notes = encoded.config, list[str]()
    saved = [name for name in config["modules_to_save"] or [] if name.rpartition(".")[2] not in CLASSIFIER_HEADS]
    if saved:
        notes.append(
            f"vLLM refuses the saved modules of this adapter ({', '.join(saved)}): it takes no others than "
            f"{' and '.join(CLASSIFIER_HEADS)}"
        )
    if config["bias"] != "none":
        notes.append(
            f"vLLM refuses this adapter because it brings biases of the base model (bias = {config['bias']!r}): serve "
            "it with PEFT, or train without them"
        )
    if config["lora_bias"]:
        notes.append(
            "vLLM refuses this adapter because its lora_B has biases (lora_bias): serve it with PEFT, or train without "
            "them"
        )
    return notes
