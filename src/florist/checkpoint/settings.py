"""What adapter_config.json says: the rank and scaling of every module, and whether the factors alone are the update."""

import hashlib
import math
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florist.checkpoint.expressions import matching, require_expressions
from florist.checkpoint.git_lfs import refuse_pointer
from florist.checkpoint.keys import LONGEST_NAME, ends_of, is_name
from florist.checkpoint.layout import TokenIndices
from florist.checkpoint.patterns import ModulePattern
from florist.checkpoint.saved_modules import CLASSIFIER_HEADS
from florist.errors import (
    InvalidAdapterError,
    MissingInputError,
    UnreadableFileError,
    UnsupportedAdapterError,
    printable,
)
from florist.files import strict_json
from florist.files.reading import read_bytes

LARGEST_ALPHA = 1e30
"""The largest alpha. With a larger one, the scaled factors of a sound adapter would leave the range of float32."""

LARGEST_CONFIG = 16_000_000
"""The largest adapter_config.json, in bytes. One that names each of 30,000 modules twice has 4 million."""

_MOST_NAMES = 1_000
"""The names of modules to save, or of adapted parameters, that a config may list. Models have tens of kinds."""

_VARIANTS = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "arrow_config": "Arrow",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "alora_invocation_tokens": "activated LoRA (aLoRA)",
    "layer_replication": "layer replication",
    "megatron_config": "Megatron sharding",
}
"""Settings that are in use if they are true or filled, and the names of what they make of the adapter."""

_HARMLESS = {"use_rslora", "eva_config", "corda_config", "lora_ga_config", "loftq_config", "runtime_config"}
"""Settings named like a variant that change no update, or change it by way of `init_lora_weights`, which is checked."""

_BASE_CHANGING = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Initialisations that subtract their start from the base weight."""

IMPLIED_MODULES = {
    "SEQ_CLS": CLASSIFIER_HEADS,
    "TOKEN_CLS": CLASSIFIER_HEADS,
    "QUESTION_ANS": ("qa_outputs",),
}
"""The modules that PEFT saves whole for a task whatever `modules_to_save` says, by the task's name."""

_NAMES_OF_THE_BASE = {
    "base_model_name_or_path": "the directory or hub id of the base model",
    "revision": "its branch, tag or commit on the hub, or null",
}
"""The settings that name the base model, and what they hold."""

_INITIALISATIONS = ("gaussian", "eva", "orthogonal", "mica")
"""Initialisations that leave the base weight alone, as true and false do."""


@dataclass(frozen=True, slots=True, eq=False)
class LoraSettings:
    """What adapter_config.json settles.

    Attributes:
        config: the content of the file.
        sha256: the hexadecimal SHA-256 of the bytes that it was read from.
        rank: `r`, for the modules that `ranks` does not name.
        alpha: `lora_alpha`, for the modules that `alphas` does not name.
        use_rslora: whether alpha is divided by sqrt(r) in place of r.
        ranks: `rank_pattern`.
        alphas: `alpha_pattern`.
        modules_to_save: the ends of the names of modules that are saved whole, with those that the task implies.
        target_parameters: the ends of the names of parameters that are adapted without their module.
        trainable_token_indices: the rows of an embedding that are saved whole.
    """

    config: Mapping[str, Any]
    sha256: str
    rank: int
    alpha: float
    use_rslora: bool
    ranks: ModulePattern[int]
    alphas: ModulePattern[float]
    modules_to_save: tuple[str, ...]
    target_parameters: tuple[str, ...]
    trainable_token_indices: TokenIndices

    def resolve(self, modules: Collection[str]) -> dict[str, tuple[int, float]]:
        """The rank and the scaling of each module. The scaling is alpha / r, or alpha / sqrt(r) with rsLoRA.

        Raises:
            InvalidAdapterError: matching the patterns takes too long.
        """
        ranks, alphas = self.ranks.values(modules, self.rank), self.alphas.values(modules, self.alpha)
        return {
            module: (rank, alphas[module] / (math.sqrt(rank) if self.use_rslora else rank))
            for module, rank in ranks.items()
        }

    def targeted(self, modules: Collection[str]) -> set[str]:
        """The modules that `target_modules` means. A list names ends of names; text is a regular expression.

        Raises:
            InvalidAdapterError: matching the expression takes too long.
        """
        targets = self.config.get("target_modules") or []
        if isinstance(targets, str):
            return set(matching([targets], modules, whole=True)[0])
        ends = frozenset(targets)
        return {module for module in modules if any(end in ends for end in ends_of(module))}

    @property
    def trains_biases(self) -> bool:
        """Whether biases of the base model were trained, which are then saved whole."""
        return self.config.get("bias", "none") != "none"

    def text(self, key: str) -> str | None:
        """A setting that is text; None if it is missing or empty."""
        value = self.config.get(key)
        return value if isinstance(value, str) and value else None


def read_settings(path: Path) -> LoraSettings:
    """Read and check adapter_config.json.

    Raises:
        MissingInputError: there is no such file.
        InvalidAdapterError: it is no configuration of LoRA, or a rank or alpha is no number of the right kind.
        UnsupportedAdapterError: a variant is in use under which the update is not ``base + s B A``, or which changes
            the base.
    """
    content = _read(path)
    refuse_pointer(path, content)
    config = _object(path, content)
    require_plain_lora(path, config)
    _check_targets(path, config)
    _check_base(path, config)
    rank_pattern = _table(path, config, "rank_pattern")
    alpha_pattern = _table(path, config, "alpha_pattern")
    return LoraSettings(
        config=config,
        sha256=hashlib.sha256(content).hexdigest(),
        rank=_rank(path, "r", config.get("r", 8)),
        alpha=_alpha(path, "lora_alpha", config.get("lora_alpha", 8)),
        use_rslora=bool(config.get("use_rslora")),
        ranks=ModulePattern.of(
            {k: _rank(path, f"rank_pattern[{reprlib.repr(k)}]", v) for k, v in rank_pattern.items()},
            f"rank_pattern of {path}",
        ),
        alphas=ModulePattern.of(
            {k: _alpha(path, f"alpha_pattern[{reprlib.repr(k)}]", v) for k, v in alpha_pattern.items()},
            f"alpha_pattern of {path}",
        ),
        modules_to_save=_modules_to_save(path, config),
        target_parameters=tuple(_names(path, config, "target_parameters")),
        trainable_token_indices=_token_indices(path, config),
    )


def _check_targets(path: Path, config: Mapping[str, Any]) -> None:
    targets = config.get("target_modules")
    if isinstance(targets, str):
        require_expressions([targets], f"target_modules of {path}")
    elif targets is not None and not (isinstance(targets, list) and all(isinstance(name, str) for name in targets)):
        raise InvalidAdapterError(
            f"expected target_modules in {path} to be names or a regular expression, got {reprlib.repr(targets)}"
        )


def _check_base(path: Path, config: Mapping[str, Any]) -> None:
    """Check what names the base model: tables show it, messages quote it, and the aggregate carries it on."""
    for key, named in _NAMES_OF_THE_BASE.items():
        value = config.get(key)
        if isinstance(value, str) and value and not is_name(value):
            raise InvalidAdapterError(
                f"expected {key} in {path} to have up to {LONGEST_NAME} printable characters, got "
                f"'{printable(value, 100)}', which has {len(value)}; write {named} there"
            )


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, most=LARGEST_CONFIG)
    except FileNotFoundError as error:
        raise MissingInputError(
            f"expected {path.name} beside the weights, found no {path}; copy it from where the adapter was saved"
        ) from error
    except UnreadableFileError as error:  # which says what was expected
        raise InvalidAdapterError(str(error)) from error
    except OSError as error:
        raise InvalidAdapterError(f"expected JSON in {path}, and reading failed: {error}") from error


def _object(path: Path, content: bytes) -> dict[str, Any]:
    try:
        config = strict_json.decode(content.decode())
        strict_json.require_shallow(config)
    except ValueError as error:
        raise InvalidAdapterError(
            f"expected JSON in {path}, and reading failed: {error}; save the adapter again with save_pretrained()"
        ) from error
    if not isinstance(config, dict):
        raise InvalidAdapterError(f"expected a JSON object in {path}, got {type(config).__name__}")
    return config


def require_plain_lora(where: Path | str, config: Mapping[str, Any]) -> None:
    """Check that the update of an adapter is its factors' product, ``s B A``, over the base as it is.

    Args:
        where: the file of the config, or what else messages call the adapter.
        config: its content, or that of a live `peft.LoraConfig`.

    Raises:
        InvalidAdapterError: it names no kind of adapter.
        UnsupportedAdapterError: it is no LoRA, a variant is in use, or an initialisation that changes the base.
    """
    peft_type = config.get("peft_type")
    if peft_type is None:
        raise InvalidAdapterError(f'expected "peft_type": "LORA" in {where}, found no peft_type')
    if not isinstance(peft_type, str) or peft_type.upper() != "LORA":
        shown = printable(peft_type, 60) if isinstance(peft_type, str) else reprlib.repr(peft_type)
        raise UnsupportedAdapterError(
            f"{where} is a {shown} adapter: florist combines plain LoRA only; train it as LoRA"
        )
    unknown = {key: key for key in config if _looks_like_variant(key)}
    for key, name in {**_VARIANTS, **unknown}.items():
        if config.get(key):
            raise UnsupportedAdapterError(
                f"{where} uses {name} ({key}), under which the update is not s B A: combining its factors would give a "
                "wrong adapter; train it as plain LoRA"
            )
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_BASE_CHANGING):
        raise UnsupportedAdapterError(
            f"{where} was initialised with {start}, which changes the base weights, so that its factors refer to "
            "another base than those of the other adapters; re-save it with "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...) (PEFT offers none for LoftQ: train it "
            "as plain LoRA)"
        )
    if isinstance(start, str) and start.lower() not in _INITIALISATIONS:
        raise UnsupportedAdapterError(
            f"{where} was initialised with {start!r}, which florist does not know: it may have changed the base "
            f"weights; expected true, false or one of {', '.join(_INITIALISATIONS)}"
        )


def _looks_like_variant(key: str) -> bool:
    # florist would combine a variant of a later PEFT wrongly, without a word. Such a key switches each of them on.
    return (key.startswith("use_") or key.endswith("_config")) and key not in _VARIANTS and key not in _HARMLESS


def _table(path: Path, config: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise InvalidAdapterError(f"expected {key} in {path} to be an object, got {reprlib.repr(value)}")
    return value


def _names(path: Path, config: Mapping[str, Any], key: str) -> list[str]:
    value = config.get(key) or []
    if not isinstance(value, list) or not all(isinstance(name, str) and is_name(name) for name in value):
        raise InvalidAdapterError(f"expected {key} in {path} to be a list of names, got {reprlib.repr(value)}")
    if len(value) > _MOST_NAMES:
        raise InvalidAdapterError(f"expected at most {_MOST_NAMES} names as {key} in {path}, got {len(value)}")
    return value


def _modules_to_save(path: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules that the config names, and those that its task implies: older PEFT did not write the latter down."""
    implied = IMPLIED_MODULES.get(str(config.get("task_type")), ())
    return tuple(dict.fromkeys([*_names(path, config, "modules_to_save"), *implied]))


def _token_indices(path: Path, config: Mapping[str, Any]) -> TokenIndices:
    value = config.get("trainable_token_indices")
    lists = list(value.values()) if isinstance(value, dict) else [value or []]
    if not all(isinstance(rows, list) and all(type(row) is int for row in rows) for rows in lists):
        raise InvalidAdapterError(
            f"expected trainable_token_indices in {path} to be a list of token ids, or one by embedding, got "
            f"{reprlib.repr(value)}"
        )
    return value or None


def _rank(path: Path, key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise InvalidAdapterError(f"expected {key} in {path} to be a whole number from 1, got {reprlib.repr(value)}")
    return value


def _alpha(path: Path, key: str, value: object) -> float:
    # The comparison is false for NaN.
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) <= LARGEST_ALPHA:
        raise InvalidAdapterError(
            f"expected {key} in {path} to be a finite number, at most {LARGEST_ALPHA:.0e}, got {reprlib.repr(value)}"
        )
    return float(value)
