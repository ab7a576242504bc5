"""From JSON records to tokens: reading, recognising the shape of a record, prompts, labels."""

import json
import reprlib
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
        text = path.read_text(encoding="utf-8-sig")
        rows: Any = list(_parse_lines(text)) if path.suffix == ".jsonl" else json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path}: expected UTF-8 JSON, and reading failed: {error}; "
            "a .json file holds one list, a .jsonl file one object a line"
        ) from error
    other = _other_than_records(rows)
    if other is not None:
        raise DataError(f"{path}: expected a non-empty list of JSON objects, one a record, got {other}")
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
        DataError: the template's braces do not pair, or hold more than a field's name; or (later) it names a field
            that a record lacks.
    """
    try:
        fields = [field for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise DataError(f"prompt_template {template!r}: {error}; write a literal brace twice") from error
    names = {name or "" for _, name, _, _ in fields}
    if any(spec or conversion for _, _, spec, conversion in fields) or any(not n or set(n) & set(".[") for n in names):
        raise DataError(
            f"prompt_template {template!r}: expected plain fields as {{instruction}}, got an empty one, or one with "
            "a format, an attribute or an index"
        )

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
    keeps at least half, at its start; the prompt keeps its end, where the instruction templates ask for the answer,
    and the beginning-of-sequence token, without which some models derail.

    Args:
        tokenizer: of the model.
        shape: of the records.
        prompt: from the fields to the text before the answer.
        max_length: in tokens, prompt and answer together; at least 2.
    """

    tokenizer: PreTrainedTokenizerBase
    shape: RecordShape
    prompt: Callable[[Mapping[str, str]], str]
    max_length: int

    def __call__(self, record: Record) -> Features:
        """Token numbers and labels of one record.

        Raises:
            DataError: the record lacks a field, or it has no token whose loss could count.
        """
        prompt, answer = self.texts(record)
        tokens: list[int] = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        end = self.tokenizer.eos_token_id
        tokens = tokens + ([end] if isinstance(end, int) else [])
        before = self._prompt_tokens(prompt)
        tokens = tokens[: max(self.max_length - len(before), self.max_length - self.max_length // 2)]
        excess = len(before) + len(tokens) - self.max_length
        if excess > 0:
            opening = 1 if before[0] == self.tokenizer.bos_token_id else 0
            before = before[:opening] + before[opening + excess :]
        # The first token of a sequence is predicted from nothing, so that its loss never counts.
        if not tokens or len(before) + len(tokens) < 2:
            raise DataError(
                f"expected an answer of one token at least and something before it, got {len(before)} tokens of prompt "
                f"and {len(tokens)} of answer"
            )
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
            DataError: the record lacks a field, its class is unknown, or its text is empty.
        """
        label = _label(record, self.label_field)
        if label not in self.labels:
            raise DataError(f"expected a class of {list(self.labels)}, got {label!r}; add it to [task] labels")
        encoded = self.tokenizer(self.text(_as_text(record)), truncation=True, max_length=self.max_length)
        if not encoded["input_ids"]:
            raise DataError("expected a text, got an empty one; remove the record")
        return {"input_ids": encoded["input_ids"], "labels": self.labels.index(label)}


def classes(records: Sequence[Record], label_field: str) -> tuple[str, ...]:
    """The class names in a field, sorted.

    Raises:
        DataError: a record lacks the field, or there are fewer than two classes.
    """
    found = tuple(sorted({_label(record, label_field) for record in records}))
    if len(found) < 2:
        raise DataError(f"expected at least two classes in {label_field!r}, got {list(found)}")
    return found


def _label(record: Record, label_field: str) -> str:
    if record.get(label_field) is None:
        got = "none" if label_field in record else str(sorted(record))
        raise DataError(f"expected the class in the field {label_field!r}, got {got}; set [data] label_field")
    return str(record[label_field])


def _parse_lines(text: str) -> Iterator[Any]:
    start = 0
    # Not splitlines: it splits at U+2028 and others too, which may stand in a JSON string as they are.
    for line in text.split("\n"):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise json.JSONDecodeError(error.msg, text, start + error.pos) from error  # counts the file's lines
        start += len(line) + 1


def _other_than_records(rows: Any) -> str | None:
    if isinstance(rows, dict):
        return f"an object with the keys {reprlib.repr(list(rows))}"
    if not isinstance(rows, list):
        return reprlib.repr(rows)
    if not rows:
        return "an empty list"
    numbered = enumerate(rows, start=1)
    return next((f"{reprlib.repr(row)} as record {n}" for n, row in numbered if not isinstance(row, dict)), None)


def _as_text(record: Record) -> dict[str, str]:
    return {name: "" if value is None else str(value) for name, value in record.items()}
