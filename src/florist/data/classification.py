"""Texts with a class, the examples of a sequence classifier."""

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from florist.data.examples import Features
from florist.data.fields import listed, place_of, text_of
from florist.data.reading import Example
from florist.errors import DataError


@dataclass(frozen=True, slots=True)
class ClassificationEncoder:
    """Encodes a text and the number of its class.

    Args:
        tokenizer: The tokenizer of the model.
        text: Turns the fields of an example into its text.
        label_field: The field that holds the class.
        labels: The names of the classes in the order of their numbers.
        max_length: The length in tokens beyond which a text is cut.
    """

    tokenizer: PreTrainedTokenizerBase
    text: Callable[[Mapping[str, Any]], str]
    label_field: str
    labels: tuple[str, ...]
    max_length: int

    def __call__(self, example: Example) -> Features:
        """Return the token numbers and the class number of one example.

        Raises:
            DataError: The example lacks a field, its class is unknown, or its text is empty.
        """
        label = _label(example, self.label_field)
        if label not in self.labels:
            raise DataError(
                f"expected a class of {listed(self.labels)}, got {reprlib.repr(label)}; add it to [task] labels"
            )
        encoded = self.tokenizer(self.text(example), truncation=True, max_length=self.max_length)
        if not encoded["input_ids"]:
            raise DataError("expected a text, got an empty one; remove the example")
        return {"input_ids": encoded["input_ids"], "labels": self.labels.index(label)}


def classes(examples: Sequence[Example], label_field: str) -> tuple[str, ...]:
    """Return the names of the classes in a field, sorted.

    Raises:
        DataError: An example lacks the field, or there are fewer than two classes.
    """
    every: set[str] = set()
    for number, example in enumerate(examples, start=1):
        try:
            every.add(_label(example, label_field))
        except DataError as error:
            raise DataError(f"{place_of(example, f'the training examples, example {number}')}: {error}") from error
    found = tuple(sorted(every))
    if len(found) < 2:
        raise DataError(
            f"expected at least two classes in {label_field!r}, got {listed(found)}; set [data] label_field to the "
            "field that holds the class"
        )
    return found


def _label(example: Example, label_field: str) -> str:
    if example.get(label_field) is None:
        got = "none" if label_field in example else f"the fields {listed(example)}"
        raise DataError(f"expected the class in the field {label_field!r}, got {got}; set [data] label_field")
    return text_of(example, label_field)
