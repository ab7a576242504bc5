"""Encoded examples, and how some of them become a batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from florist.data.fields import listed, place_of
from florist.data.reading import Example
from florist.errors import DataError

Features = dict[str, Any]
"""The ``input_ids`` and ``labels`` of one example, which a collator pads."""

IGNORED = -100
"""The label of a token that the loss skips (PyTorch's ``ignore_index``)."""


@dataclass(frozen=True, slots=True)
class EncodedExamples(Sequence[Features]):
    """A sequence of encoded examples, which `collate` pads into batches of tensors."""

    features: Sequence[Features]
    collate: Callable[[list[Features]], Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.features)

    @overload
    def __getitem__(self, index: int) -> Features: ...
    @overload
    def __getitem__(self, index: slice) -> list[Features]: ...
    def __getitem__(self, index: int | slice) -> Features | list[Features]:
        return list(self.features[index]) if isinstance(index, slice) else self.features[index]

    def batches(self, batch_size: int) -> Iterator[Mapping[str, Any]]:
        """Yield batches in the order of the sequences' lengths, which pads least; the last batch may be smaller."""
        ordered = sorted(self.features, key=lambda features: len(features["input_ids"]))
        for start in range(0, len(ordered), batch_size):
            yield self.collate(ordered[start : start + batch_size])


def encode_examples(
    examples: Sequence[Example],
    encoder: Callable[[Example], Features],
    collate: Callable[[list[Features]], Mapping[str, Any]],
    source: str,
) -> EncodedExamples:
    """Encode all examples of one source.

    Raises:
        DataError: The encoder refuses an example; the message names its file and line, or else the source and the
            number of the example.
    """
    features: list[Features] = []
    for number, example in enumerate(examples, start=1):
        try:
            features.append(encoder(example))
        except DataError as error:
            raise DataError(f"{place_of(example, f'{source}, example {number}')}: {error}") from error
    return EncodedExamples(features, collate)


def is_encoded(example: Example) -> bool:
    """Tell whether an example holds token numbers already."""
    return "input_ids" in example


def as_features(example: Example) -> Features:
    """Return the token numbers and labels of an example that was encoded before; without labels, every token counts.

    Raises:
        DataError: The example has no token numbers, another number of labels, or no token whose loss could count.
    """
    ids = example.get("input_ids")
    labels = example.get("labels", ids)
    if not (isinstance(ids, list) and isinstance(labels, list) and len(ids) == len(labels)):
        raise DataError(
            "expected input_ids and as many labels, both lists of numbers, as in the first example, got an example "
            f"with the fields {listed(example)}; encode all examples alike"
        )
    for name, numbers in (("input_ids", ids), ("labels", labels)):
        others = [each for each in numbers if not isinstance(each, int) or isinstance(each, bool)]
        if others:
            raise DataError(f"expected {name} to be whole numbers, got {listed(others)}; encode the example again")
    # The first token of a sequence is predicted from nothing, so that its loss never counts.
    if all(label == IGNORED for label in labels[1:]):
        raise DataError(f"expected at least one label after the first that is not {IGNORED}; remove the example")
    return {"input_ids": list(ids), "labels": list(labels)}
