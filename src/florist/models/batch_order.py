"""The order in which a client's examples are trained on, where examples of about the same length share a batch."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from florist.data.examples import EncodedExamples
from florist.seeding import generator

BATCHES_SORTED = 50
"""How many batches are sorted by length at once, as in transformers' ``LengthGroupedSampler``."""


def grouped_by_length(lengths: Sequence[int], batch_size: int, draw: torch.Generator) -> list[int]:
    """Return an order of examples in which each slice of `batch_size` holds examples of about the same length.

    The examples are shuffled, runs of at most 50 batches (a quarter of the examples, where there are few) are sorted by
    length, and the batches are shuffled. transformers leaves out the last step, and goes from long to short in each
    run: a round that is shorter than a pass would train on long examples alone. The examples that fill no batch are
    drawn at random and come last.

    Args:
        lengths: The length of each example.
        batch_size: How many examples share a batch.
        draw: Where the shuffling comes from.
    """
    shuffled = torch.randperm(len(lengths), generator=draw).tolist()
    whole = len(lengths) // batch_size * batch_size
    run = batch_size * max(1, min(BATCHES_SORTED, whole // batch_size // 4))
    in_order = [
        each
        for start in range(0, whole, run)
        for each in sorted(shuffled[start : min(start + run, whole)], key=lengths.__getitem__)
    ]
    batches = torch.randperm(whole // batch_size, generator=draw).tolist()
    return [i for k in batches for i in in_order[k * batch_size : (k + 1) * batch_size]] + shuffled[whole:]


class GroupedByLength(Sampler[int]):
    """The places of a client's examples, each pass in another order of `grouped_by_length`, drawn from a seed."""

    def __init__(self, examples: EncodedExamples, batch_size: int, seed: int) -> None:
        self._lengths = [len(features["input_ids"]) for features in examples]
        self._batch_size, self._seed, self._passes = batch_size, seed, 0

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        draw = generator(self._seed, "batches", self._passes)
        self._passes += 1
        return iter(grouped_by_length(self._lengths, self._batch_size, draw))
