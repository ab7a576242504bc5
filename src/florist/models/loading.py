"""Tokenizers and base models, which are loaded by directory or hub id and checked to be whole."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from florist.data.fields import listed
from florist.errors import ModelError
from florist.models.finding import cached, require_at_hub
from florist.seeding import derive_seed


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a local directory or hub id, and give it a padding token.

    Raises:
        ModelError: The tokenizer cannot be loaded, or it has neither a padding nor an end-of-sequence token.
    """
    return with_padding(from_pretrained(AutoTokenizer, name_or_path), name_or_path)


def with_padding(tokenizer: PreTrainedTokenizerBase, name_or_path: str) -> PreTrainedTokenizerBase:
    """Give a tokenizer a padding token where it has none, and return it.

    Raises:
        ModelError: It has neither a padding nor an end-of-sequence token.
    """
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise ModelError(
            f"{name_or_path}: expected a tokenizer with a padding or an end-of-sequence token, got neither; set "
            "pad_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        # Any token will do, because padding is masked out of attention and loss.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def save_tokenizer(name_or_path: str, directory: Path) -> None:
    """Write the tokenizer of a base into a directory, as it is and not as training set it up.

    Raises:
        ModelError: The tokenizer cannot be loaded.
    """
    from_pretrained(AutoTokenizer, name_or_path).save_pretrained(directory)


def load_causal_lm(name_or_path: str, dtype: torch.dtype, **loading: Any) -> PreTrainedModel:
    """Load a causal language model.

    Args:
        name_or_path: A local directory or a hub id.
        dtype: The dtype of the parameters.
        loading: Further arguments of ``from_pretrained``, a quantization for instance.

    Raises:
        ModelError: The model cannot be loaded, or the checkpoint lacks some of its parameters.
    """
    model, missing = _load(AutoModelForCausalLM, name_or_path, dtype, **loading)
    _require_complete(name_or_path, missing, ())
    return model


def load_classifier(
    name_or_path: str,
    dtype: torch.dtype,
    labels: tuple[str, ...],
    head: tuple[str, ...] | None,
    seed: int,
    **loading: Any,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load a model with a classification head; return it and the names of the modules that make up the head.

    A head that is not in the checkpoint is drawn from `seed`, so that everybody starts from the same one.

    Args:
        name_or_path: A local directory or a hub id.
        dtype: The dtype of the parameters.
        labels: The names of the classes in the order of their numbers.
        head: The modules to train whole; by default those of ``classifier`` and ``score`` that exist, as in PEFT.
        seed: The seed of the run.
        loading: Further arguments of ``from_pretrained``, a quantization for instance.

    Raises:
        ModelError: The model cannot be loaded, a named module does not exist, or parameters outside the head are
            missing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "head"))
        model, missing = _load(
            AutoModelForSequenceClassification,
            name_or_path,
            dtype,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
            **loading,
        )
    names = head_of(model, name_or_path, head)
    _require_complete(name_or_path, missing, names)
    return model, names


def head_of(model: nn.Module, name_or_path: str, head: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the names of the modules that make up the head of a classifier.

    Args:
        model: The classifier.
        name_or_path: What the error calls it.
        head: The modules to train whole; by default those of ``classifier`` and ``score`` that exist, as in PEFT.

    Raises:
        ModelError: A named module does not exist, or there is none of the default ones.
    """
    children = dict(model.named_modules())
    names = head if head is not None else tuple(name for name in ("classifier", "score") if name in children)
    absent = [name for name in names if name not in children]
    if absent or not names:
        raise ModelError(
            f"{name_or_path}: expected the head modules {absent or ['classifier', 'score']}, and the model has "
            f"{listed(sorted(name for name in children if name and '.' not in name))}; set [lora] modules_to_save"
        )
    return names


def require_classes(model: PreTrainedModel, labels: tuple[str, ...]) -> None:
    """Check that a classifier has a class for every label.

    Raises:
        ModelError: It has another number of classes.
    """
    if model.config.num_labels != len(labels):
        raise ModelError(
            f"expected a model with {len(labels)} classes, one for each of {listed(labels)}, got one with "
            f"{model.config.num_labels}; load it with num_labels={len(labels)}, or name its classes in [task] labels"
        )


def _load(auto: Any, name_or_path: str, dtype: torch.dtype, **settings: Any) -> tuple[PreTrainedModel, list[str]]:
    model, report = from_pretrained(auto, name_or_path, dtype=dtype, output_loading_info=True, **settings)
    return model, sorted(report["missing_keys"])


def from_pretrained(auto: Any, name_or_path: str, **settings: Any) -> Any:
    """Load something by a class of transformers: from a directory, from the local cache of the hub, or from the hub.

    The hub is asked last, for what the cache does not have in whole, and whether it answers is tried first:
    transformers would try for minutes.

    Args:
        auto: A class with ``from_pretrained``.
        name_or_path: A directory or a hub id.
        settings: Further arguments of ``from_pretrained``.

    Raises:
        ModelError: There is no such model, or transformers cannot load it.
    """
    if Path(name_or_path).is_dir():
        return _loaded(auto, name_or_path, "a directory that transformers cannot load", settings)
    snapshot = cached(name_or_path)
    if snapshot is not None:
        try:
            return auto.from_pretrained(snapshot, **settings)
        except OSError:
            pass  # the cache lacks some of its files
    require_at_hub(name_or_path)
    return _loaded(auto, name_or_path, "one of the hub that transformers cannot load", settings)


def _loaded(auto: Any, name_or_path: str, what: str, settings: Mapping[str, Any]) -> Any:
    try:
        return auto.from_pretrained(name_or_path, **settings)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"[model] name_or_path = {name_or_path!r}: expected a transformers model, got {what} ({reason})"
        ) from error


def _require_complete(name_or_path: str, missing: list[str], head: tuple[str, ...]) -> None:
    beyond = [name for name in missing if not any(name.startswith(f"{module}.") for module in head)]
    if beyond:
        raise ModelError(
            f"{name_or_path}: expected a complete checkpoint, and it lacks {listed(beyond)}, which would start at "
            "random and be lost; add their modules to [lora] modules_to_save"
        )


SAMPLES = 64
"""How many numbers of each parameter go into a fingerprint."""


def fingerprint(model: nn.Module) -> str:
    """Return a SHA-256 over the names, shapes, dtypes and some evenly spaced numbers of all parameters.

    The fingerprint names a base by its weights. Another base, a fine-tuned version of the same base, and the same base
    in another dtype or quantization all have another fingerprint.

    Cost: `SAMPLES` numbers of each parameter are copied to the CPU.
    """
    found = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().flatten()
        index = torch.linspace(0, max(0, flat.numel() - 1), SAMPLES, dtype=torch.float64).long()
        numbers = flat[index.to(flat.device)].cpu() if flat.numel() else flat.cpu()
        found.update(f"{name}\0{parameter.dtype}\0{tuple(parameter.shape)}\0".encode())
        found.update(numbers.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
