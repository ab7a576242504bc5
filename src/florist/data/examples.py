"""Encoded records, and how some of them become a batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from florist.data.reading import Example
from florist.errors import DataError

Features = dict[str, Any]
"""What a collator pads: ``input_ids`` and ``labels``."""

IGNORED = -100
"""Label of a token that the loss skips (PyTorch's ``ignore_index``)."""


@dataclass(frozen=True, slots=True)
class EncodedExamples(Sequence[Features]):
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


def encode_examples(
    records: Sequence[Example],
    encoder: Callable[[Example], Features],
    collate: Callable[[list[Features]], Mapping[str, Any]],
    source: str,
) -> EncodedExamples:
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
    return EncodedExamples(rows, collate)
