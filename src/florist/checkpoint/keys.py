"""What the names in an adapter's weights file mean."""

import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from florist.errors import InvalidAdapterError, UnsupportedAdapterError, some

PREFIX = "base_model.model."
"""What stands before every name that PEFT writes. Without it PEFT loads nothing, and says so in a warning only."""

TRAINED_ROWS = ".token_adapter.trainable_tokens_delta"
"""The end of the name of an embedding's trained rows. They replace the rows of the base, whatever "delta" says."""

LONGEST_NAME = 1_000
"""The characters of a name. Those of models have less than 200."""

_HALF = re.compile(
    r"(?P<module>.+)\.(?P<half>lora_[AB])(?P<adapter>\.[^.]+)?(?P<leaf>\.weight|\.bias)"
    r"|(?P<embedding>.+)\.(?P<embedding_half>lora_embedding_[AB])(?P<embedding_adapter>\.[^.]+)?"
)
"""A module and its half. The adapter's name, which PEFT leaves out of files, may stand between half and leaf."""

_LINEAR_PAIR = ("lora_A.weight", "lora_B.weight")
_EMBEDDING_PAIR = ("lora_embedding_A", "lora_embedding_B")
_OUTPUT_BIAS = "lora_B.bias"
_EMBEDDINGS = ("embed_tokens", "lm_head")
"""Names by which PEFT knows the modules that a model may tie to each other."""

_VARIANTS = {
    "lora_magnitude_vector": "DoRA",
    "lora_diag": "KaSA",
    "lora_E": "AdaLoRA",
    "ranknum": "AdaLoRA",
}


@dataclass(frozen=True, slots=True)
class ModuleKeys:
    """The names of one module's tensors in the file.

    Attributes:
        A: the name of the down-projection.
        B: the name of the up-projection.
        bias: the name of ``lora_B.bias``; None if there is none.
        embedding: whether the halves are ``lora_embedding_*``.
    """

    A: str
    B: str
    bias: str | None
    embedding: bool


@dataclass(frozen=True, slots=True)
class AdapterKeys:
    """The names of a file, sorted by meaning.

    Attributes:
        modules: the names of each module's tensors, by the module's name without the prefix.
        saved_parameters: the saved parameters, name in the model -> name in the file.
        frozen: copies of base weights, name in the model -> name in the file.
        tied: the names in `saved_parameters` that repeat a saved embedding, because the base model ties them to it.
    """

    modules: Mapping[str, ModuleKeys]
    saved_parameters: Mapping[str, str]
    frozen: Mapping[str, str]
    tied: tuple[str, ...]


def sort_keys(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    modules_to_save: Collection[str],
    biases: bool,
    ties_embeddings: bool = False,
) -> AdapterKeys:
    """Give every name in a weights file its meaning.

    Args:
        path: the file, for messages.
        shapes: the names in the file, and the shapes of their tensors.
        modules_to_save: the ends of the names of modules that are saved whole.
        biases: whether the adapter trained the base model's biases.
        ties_embeddings: PEFT's `ensure_weight_tying`. A saved embedding is then stored a second time, under the name
            of the output layer that is tied to it, which the config does not name.

    Raises:
        InvalidAdapterError: a half is missing, a name lacks PEFT's prefix, two names mean the same tensor, or a name
            means nothing that florist knows. To drop it would drop a part of the update.
        UnsupportedAdapterError: a name belongs to a variant of LoRA.
    """
    halves: dict[str, dict[str, str]] = {}
    saved: dict[str, str] = {}
    frozen: dict[str, str] = {}
    unnamed: dict[str, str] = {}
    problems: list[str] = []
    adapters: dict[str, str] = {}
    for key in sorted(shapes):
        name = key.removeprefix(PREFIX)
        _refuse_variant(path, key)
        if name == key:
            problems.append(f"{key} lacks the prefix {PREFIX!r}, without which PEFT would not load it")
        elif match := _HALF.fullmatch(name):
            module = sys.intern(match["module"] or match["embedding"])  # one copy for all clients
            half = match["embedding_half"] or match["half"] + match["leaf"]
            if halves.setdefault(module, {}).setdefault(half, key) != key:
                problems.append(f"{key} is the second {half} of {module}: a file must hold one adapter")
            adapters.setdefault(match["adapter"] or match["embedding_adapter"] or "", key)
        elif owner(name, modules_to_save) is not None:
            if not _is_copy_of_saved_bias(name, shapes):
                saved[name] = key
        elif name.endswith(TRAINED_ROWS):
            saved[name] = key
        elif biases and name.endswith(".bias"):
            saved[name.replace(".base_layer.", ".")] = key
        elif name.endswith(".base_layer.weight"):
            frozen[name.replace(".base_layer.", ".")] = key
        else:
            unnamed[name] = key
    embeddings = {shapes[key] for name, key in saved.items() if _is_embedding(name)} if ties_embeddings else set()
    tied = {name: key for name, key in unnamed.items() if _is_embedding(name) and shapes[key] in embeddings}
    problems += [_unknown(key) for name, key in unnamed.items() if name not in tied]
    modules, incomplete = _pairs(halves)
    problems += [*_of_two_adapters(adapters), *incomplete]
    if not halves and not problems:
        problems.append("it holds no lora_A and lora_B at all")
    if problems:
        raise InvalidAdapterError(
            f"expected the tensors of one complete LoRA adapter in {path}, but {some(problems)}; save the "
            "adapter again with save_pretrained()"
        )
    return AdapterKeys(modules, dict(sorted({**saved, **tied}.items())), frozen, tuple(tied))


def is_name(text: str) -> bool:
    """Whether a text can be the name of a module or tensor: neither empty nor long, on one line, and printable.

    No model has other names, and these would reach logs, reports and the expressions that PEFT matches.
    """
    return 0 < len(text) <= LONGEST_NAME and text.isprintable()


def ends_of(module: str) -> Iterator[str]:
    """A module's name and every end of it behind a dot, by which configs name it.

    >>> list(ends_of("layers.0.up"))
    ['layers.0.up', '0.up', 'up']
    """
    yield module
    for place, letter in enumerate(module):
        if letter == ".":
            yield module[place + 1 :]


def owner(name: str, modules_to_save: Collection[str]) -> str | None:
    """The module to save that a parameter belongs to; None if there is none.

    PEFT saves a module whose name ends with one of `modules_to_save`.
    """
    parts = name.split(".")[:-1]
    paths, ends = (".".join(parts[: end + 1]) for end in range(len(parts))), tuple(modules_to_save)
    return next((path for path in paths if path.endswith(ends)), None)


def _pairs(halves: Mapping[str, Mapping[str, str]]) -> tuple[dict[str, ModuleKeys], list[str]]:
    modules: dict[str, ModuleKeys] = {}
    problems: list[str] = []
    for module, keys in halves.items():
        embedding = any(half in keys for half in _EMBEDDING_PAIR)
        A, B = pair = _EMBEDDING_PAIR if embedding else _LINEAR_PAIR
        problems += [f"{module} has no {half}" for half in pair if half not in keys]
        beyond = sorted(keys.keys() - {A, B, "" if embedding else _OUTPUT_BIAS})
        problems += [f"{module} has {half}, which PEFT does not write" for half in beyond]
        if A in keys and B in keys:
            modules[module] = ModuleKeys(keys[A], keys[B], keys.get(_OUTPUT_BIAS), embedding)
    return modules, problems


def _of_two_adapters(adapters: Mapping[str, str]) -> list[str]:
    """What is wrong with names of several adapters in one file, given one key of each: halves of two are no pair."""
    some_keys = list(adapters.values())[:2]
    return [f"{' and '.join(some_keys)} belong to two adapters: a file must hold one"] if len(adapters) > 1 else []


def _refuse_variant(path: Path, key: str) -> None:
    variant = next((variant for part, variant in _VARIANTS.items() if f".{part}." in f"{key}."), None)
    if variant is not None:
        raise UnsupportedAdapterError(
            f"{path} holds {key}: this is {variant}, whose update is not s B A; train it as plain LoRA"
        )


def _is_copy_of_saved_bias(name: str, names: Collection[str]) -> bool:
    """Whether a name is that of a copy, which PEFT wrote beside the parameter itself.

    With ``bias="all"`` PEFT adds a saved module's bias twice more, as it was before training and as it was trained.
    """
    return any(
        inner in name and PREFIX + name.replace(inner, ".") in names
        for inner in (".original_module.", ".modules_to_save.")
    )


def _is_embedding(parameter: str) -> bool:
    return parameter.endswith(tuple(f"{name}.weight" for name in _EMBEDDINGS))


def _unknown(key: str) -> str:
    if key.endswith((".weight", ".bias")) and ".lora_" not in key:
        return (
            f"{key} is a saved parameter that the config does not name: if it was trained, add its module to "
            "modules_to_save in adapter_config.json; if PEFT added it because the vocabulary was resized, save the "
            "adapter with save_embedding_layers=False and share the resized base model"
        )
    return f"{key} is no part of a LoRA adapter that florist knows"
