"""From JSON records to tokens: reading, recognising the shape of a record, prompts, labels."""

import json
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from transformers import PreTrainedTokenizerBase

from florist.errors import DataError, MissingInputError

Record = Mapping[str, Any]
Features = dict[str, Any]
"""What a collator pads: ``input_ids`` and ``labels``."""

IGNORED = -100
"""Label of a token that the loss skips (PyTorch's ``ignore_index``)."""


@dataclass(frozen=True, slots=True)
class Examples(Sequence[Features]):
    """Encoded records, and how to pad some of them into a batch of tensors."""

    rows: Sequence[Features]
    collate: Callable[[list[Features]], Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Features: ...
    @overload
    def __getitem__(self, index: slice) -> list[Features]: ...
    def __getitem__(self, index: int | slice) -> Features | list[Features]:
        return list(self.rows[index]) if isinstance(index, slice) else self.rows[index]

    def batches(self, batch_size: int) -> Iterator[Mapping[str, Any]]:
        """Batches in the order of the sequences' lengths, which pads least; the last one may be smaller."""
        ordered = sorted(self.rows, key=lambda features: len(features["input_ids"]))
        for start in range(0, len(ordered), batch_size):
            yield self.collate(ordered[start : start + batch_size])


def read_records(path: Path) -> list[Record]:
    """Records of a ``.json`` list or a ``.jsonl`` file with one object a line.

    Raises:
        MissingInputError: there is no such file.
        DataError: it is not a list of objects, or it is empty.
    """
    if not path.is_file():
        raise MissingInputError(f"expected a data file at {path}, found none; check [data] path and the file names")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            rows: Any = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path}: expected UTF-8 JSON ({path.suffix or 'no suffix'}), and reading failed: {error}"
        ) from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected a non-empty list of JSON objects, one a record")
    return rows


@dataclass(frozen=True, slots=True)
class RecordShape:
    """Which fields of a record hold the instruction, its further input, and the answer."""

    instruction: str
    input: str
    output: str

    def fits(self, record: Record) -> bool:
        """Whether a record has the instruction and the answer; the input may be absent."""
        return self.instruction in record and self.output in record


ALPACA = RecordShape("instruction", "input", "output")
DOLLY = RecordShape("instruction", "context", "response")
KNOWN_SHAPES: Mapping[str, RecordShape] = {"alpaca": ALPACA, "dolly": DOLLY}


def recognise(records: Sequence[Record]) -> RecordShape:
    """The known shape that the first record has.

    Raises:
        DataError: none fits.
    """
    for shape in KNOWN_SHAPES.values():
        if shape.fits(records[0]):
            return shape
    known = "; ".join(f"{name}: {s.instruction}, {s.input}, {s.output}" for name, s in KNOWN_SHAPES.items())
    raise DataError(
        f"expected records of a known shape ({known}), got the fields {sorted(records[0])}; "
        "name yours with [data] instruction_field, input_field and output_field"
    )


ALPACA_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


def alpaca_prompt(values: Mapping[str, str]) -> str:
    """The prompt of Stanford Alpaca, which has one form with an input and one without."""
    return (ALPACA_PROMPT_WITH_INPUT if values["input"] else ALPACA_PROMPT).format_map(values)


def template_prompt(template: str) -> Callable[[Mapping[str, str]], str]:
    """A prompt from a ``str.format`` template over ``{instruction}``, ``{input}`` and the record's own fields.

    Raises:
        DataError: the template's braces do not pair, or (later) it names a field that a record lacks.
    """
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise DataError(f"prompt_template {template!r}: {error}; write a literal brace twice") from error

    def render(values: Mapping[str, str]) -> str:
        missing = sorted(names - values.keys())
        if missing:
            raise DataError(
                f"prompt_template {template!r}: expected a record with {missing}, got one with {sorted(values)}"
            )
        return template.format_map(values)

    return render


def encode(
    records: Sequence[Record],
    encoder: Callable[[Record], Features],
    collate: Callable[[list[Features]], Mapping[str, Any]],
    source: str,
) -> Examples:
    """All records of one source as examples.

    Raises:
        DataError: as the encoder, with the source and the number of the record.
    """
    rows: list[Features] = []
    for number, record in enumerate(records, start=1):
        try:
            rows.append(encoder(record))
        except DataError as error:
            raise DataError(f"{source}, record {number}: {error}") from error
    return Examples(rows, collate)


@dataclass(frozen=True, slots=True)
class CausalLmEncoder:
    """Instruction and answer as one sequence whose loss counts the answer only.

    The prompt and the answer are tokenised apart, so that the border between them is a token border in training and
    in generation alike, and an end-of-sequence token closes the answer. What exceeds `max_length` is cut: the answer
    keeps at least half, at its start; the prompt keeps its end, where the instruction templates ask for the answer.

    Args:
        tokenizer: of the model.
        shape: of the records.
        prompt: from the fields to the text before the answer.
        max_length: in tokens, prompt and answer together.
    """

    tokenizer: PreTrainedTokenizerBase
    shape: RecordShape
    prompt: Callable[[Mapping[str, str]], str]
    max_length: int

    def __call__(self, record: Record) -> Features:
        """Token numbers and labels of one record.

        Raises:
            DataError: the record lacks a field.
        """
        prompt, answer = self.texts(record)
        tokens: list[int] = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        end = self.tokenizer.eos_token_id
        tokens = tokens + ([end] if isinstance(end, int) else [])
        before = self._prompt_tokens(prompt)
        tokens = tokens[: max(self.max_length - len(before), self.max_length - self.max_length // 2)]
        before = before[len(before) - min(len(before), self.max_length - len(tokens)) :]
        return {"input_ids": before + tokens, "labels": [IGNORED] * len(before) + tokens}

    def texts(self, record: Record) -> tuple[str, str]:
        """(prompt, answer) of one record."""
        if not self.shape.fits(record):
            raise DataError(
                f"expected records with {self.shape.instruction!r} and {self.shape.output!r}, got {sorted(record)}"
            )
        values = _as_text(record)
        values["instruction"] = values[self.shape.instruction]
        values["input"] = values.get(self.shape.input, "")
        return self.prompt(values), values[self.shape.output]

    def _prompt_tokens(self, prompt: str) -> list[int]:
        tokens: list[int] = self.tokenizer(prompt)["input_ids"]
        # Some tokenizers close every text; an end before the answer would teach the model to stop there.
        return tokens[:-1] if tokens and tokens[-1] == self.tokenizer.eos_token_id else tokens


@dataclass(frozen=True, slots=True)
class ClassificationEncoder:
    """A text and the number of its class.

    Args:
        tokenizer: of the model.
        text: from the record's fields to the text.
        label_field: which field holds the class.
        labels: class names in the order of their numbers.
        max_length: in tokens; the rest is cut.
    """

    tokenizer: PreTrainedTokenizerBase
    text: Callable[[Mapping[str, str]], str]
    label_field: str
    labels: tuple[str, ...]
    max_length: int

    def __call__(self, record: Record) -> Features:
        """Token numbers and class number of one record.

        Raises:
            DataError: the record lacks a field, or its class is unknown.
        """
        values = _as_text(record)
        if self.label_field not in values:
            raise DataError(f"expected the class in the field {self.label_field!r}, got {sorted(record)}")
        label = values[self.label_field]
        if label not in self.labels:
            raise DataError(f"expected a class of {list(self.labels)}, got {label!r}; add it to [task] labels")
        encoded = self.tokenizer(self.text(values), truncation=True, max_length=self.max_length)
        return {"input_ids": encoded["input_ids"], "labels": self.labels.index(label)}


def classes(records: Sequence[Record], label_field: str) -> tuple[str, ...]:
    """The class names in a field, sorted.

    Raises:
        DataError: a record lacks the field, or there are fewer than two classes.
    """
    for record in records:
        if label_field not in record:
            raise DataError(
                f"expected the class in the field {label_field!r}, got {sorted(record)}; set [data] label_field"
            )
    found = tuple(sorted({str(record[label_field]) for record in records}))
    if len(found) < 2:
        raise DataError(f"expected at least two classes in {label_field!r}, got {list(found)}")
    return found


def _as_text(record: Record) -> dict[str, str]:
    return {name: "" if value is None else str(value) for name, value in record.items()}
