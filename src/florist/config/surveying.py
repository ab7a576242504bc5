"""What a model and a directory of examples look like, for the configuration that is written for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from florist.data.reading import Example, read_examples
from florist.data.shapes import KNOWN_SHAPES
from florist.data.tables import is_dataset
from florist.errors import DataError, MissingInputError, ModelError
from florist.models.federated_model import linear_modules
from florist.models.loading import from_pretrained, load_tokenizer

_ENDINGS = (".json", ".jsonl", ".csv", ".parquet")
_HELD_OUT = {"test": ("test",), "validation": ("validation", "valid", "dev")}
"""How the name of a file begins that holds examples to test on, or to choose by."""
_FEW_VALUES = range(2, 33)
"""How many values a field has that tells kinds of examples apart."""


@dataclass(frozen=True, slots=True)
class ModelLook:
    """What is known of a model without its weights.

    Attributes:
        name_or_path: its directory or hub id.
        architecture: the name of its class.
        linear_modules: what ``target_modules`` may name.
        chat_template: whether its tokenizer has one.
        max_length: how many tokens it takes; None where its configuration does not say.
    """

    name_or_path: str
    architecture: str
    linear_modules: tuple[str, ...]
    chat_template: bool
    max_length: int | None


@dataclass(frozen=True, slots=True)
class DataLook:
    """What is known of the examples.

    Attributes:
        folder: the directory of the files.
        train: the name of the training file, or the pattern of all.
        clients: how many training files there are.
        examples: how many examples they hold.
        test: the name of the file of test examples, if there is one.
        validation: the name of the file of validation examples, if there is one.
        fields: the names of the fields of the first example.
        shape: the name of the known shape that the first example has, if any.
        kinds: for each field of few values, how many it has: a category, or a class.
    """

    folder: Path
    train: str
    clients: int
    examples: int
    test: str | None
    validation: str | None
    fields: tuple[str, ...]
    shape: str | None
    kinds: Mapping[str, int]


def look_at_model(name_or_path: str) -> ModelLook:
    """Look at the configuration and the tokenizer of a model; its weights are not loaded.

    Raises:
        ModelError: There is no such model, or transformers cannot load its configuration.
    """
    config = from_pretrained(AutoConfig, name_or_path)
    tokenizer = load_tokenizer(name_or_path)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError) as error:
        raise ModelError(
            f"{name_or_path}: expected a model that transformers knows, got {config.model_type!r}: {error}"
        ) from error
    return ModelLook(
        name_or_path=name_or_path,
        architecture=(config.architectures or [type(model).__name__])[0],
        linear_modules=linear_modules(model),
        chat_template=bool(tokenizer.chat_template),
        max_length=getattr(config, "max_position_embeddings", None),
    )


def look_at_data(path: Path) -> DataLook:
    """Look at the examples of a directory, or of one file.

    Raises:
        MissingInputError: There is no such file or directory, or no file of examples in it.
        DataError: A training file cannot be read, or the files are of several kinds.
    """
    if not path.exists():
        raise MissingInputError(f"expected a directory of examples, or a file of them, at {path}, found none")
    alone = path.is_file() or is_dataset(path)
    folder, found = (path.parent, [path]) if alone else (path, _files(path))
    held_out = {} if alone else {key: _named(found, starts) for key, starts in _HELD_OUT.items()}
    training = [file for file in found if file not in held_out.values()]
    if not training:
        raise MissingInputError(
            f"expected files of examples in {path} ({', '.join(_ENDINGS)}, or a directory of Dataset.save_to_disk), "
            "found none to train on"
        )
    examples = [example for file in training for example in read_examples(file)]
    first = examples[0]
    return DataLook(
        folder=folder,
        train=_pattern(training),
        clients=len(training),
        examples=len(examples),
        test=_name(held_out.get("test")),
        validation=_name(held_out.get("validation")),
        fields=tuple(first),
        shape=next((name for name, shape in KNOWN_SHAPES.items() if shape.fits(first)), None),
        kinds=_kinds(examples),
    )


def _files(folder: Path) -> list[Path]:
    return [each for each in sorted(folder.iterdir()) if each.suffix.lower() in _ENDINGS or is_dataset(each)]


def _named(files: Sequence[Path], starts: Sequence[str]) -> Path | None:
    return next((file for file in files if file.name.lower().startswith(tuple(starts))), None)


def _name(file: Path | None) -> str | None:
    return file.name if file is not None else None


def _pattern(files: Sequence[Path]) -> str:
    """The name of one file, or the pattern that all of them match by their first letters and their ending."""
    if len(files) == 1:
        return files[0].name
    endings = {file.suffix for file in files}
    if len(endings) > 1:
        raise DataError(
            f"expected training files of one kind in {files[0].parent}, got {', '.join(file.name for file in files)}; "
            "name one of them, or move the others away"
        )
    stems = [file.stem for file in files]
    same = next(
        (k for k, letters in enumerate(zip(*stems, strict=False)) if len(set(letters)) > 1), min(map(len, stems))
    )
    return f"{stems[0][:same]}*{endings.pop()}"


def _kinds(examples: Sequence[Example]) -> dict[str, int]:
    values = {
        name: {str(example.get(name)) for example in examples}
        for name in examples[0]
        if all(isinstance(example.get(name), str | int | bool) for example in examples)
    }
    limit = min(_FEW_VALUES.stop - 1, len(examples) // 2)
    return {name: len(some) for name, some in values.items() if _FEW_VALUES.start <= len(some) <= limit}
