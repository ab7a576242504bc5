"""Texts with a class: the records of a sequence classifier."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from florist.data.examples import Features
from florist.data.reading import Example, as_text
from florist.errors import DataError


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

    def __call__(self, record: Example) -> Features:
        """Token numbers and class number of one record.

        Raises:
            DataError: the record lacks a field, its class is unknown, or its text is empty.
        """
        label = _label(record, self.label_field)
        if label not in self.labels:
            raise DataError(f"expected a class of {list(self.labels)}, got {label!r}; add it to [task] labels")
        encoded = self.tokenizer(self.text(as_text(record)), truncation=True, max_length=self.max_length)
        if not encoded["input_ids"]:
            raise DataError("expected a text, got an empty one; remove the record")
        return {"input_ids": encoded["input_ids"], "labels": self.labels.index(label)}


def classes(records: Sequence[Example], label_field: str) -> tuple[str, ...]:
    """The class names in a field, sorted.

    Raises:
        DataError: a record lacks the field, or there are fewer than two classes.
    """
    found = tuple(sorted({_label(record, label_field) for record in records}))
    if len(found) < 2:
        raise DataError(f"expected at least two classes in {label_field!r}, got {list(found)}")
    return found


def _label(record: Example, label_field: str) -> str:
    if record.get(label_field) is None:
        got = "none" if label_field in record else str(sorted(record))
        raise DataError(f"expected the class in the field {label_field!r}, got {got}; set [data] label_field")
    return str(record[label_field])
