"""Adapters that may be combined, opened and weighed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch

from florist.checkpoint import AdapterLayout, Compatibility, SavedAdapter, check_compatible, locate, open_adapter
from florist.errors import InvalidAdapterError, InvalidUpdateError
from florist.one_shot.certificate import certified_weight
from florist.one_shot.weights import ONE_ADAPTER, Weight, Weights, combined, given
from florist.rounds import ClientUpdate, SavedParameters

OUTPUT_BIAS = ".lora_B.bias"
"""The end of the name under which a module's output bias is averaged with the saved parameters."""


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Adapters that may be combined, opened and weighed.

    Attributes:
        saved: the adapters, in the order given.
        weights: how much each of them counts.
        compatibility: what they have in common, and the modules that some lack.
        updates: the adapters as updates of one round.
        notes: what a person should know of how they were weighed.
    """

    saved: tuple[SavedAdapter, ...]
    weights: Weights
    compatibility: Compatibility
    updates: tuple[ClientUpdate, ...]
    notes: tuple[str, ...]

    @property
    def largest_rank(self) -> int:
        """The largest rank of any module of any adapter, which is at least 1."""
        return max((spec.rank for one in self.saved for spec in one.adapter.specs.values()), default=1) or 1

    @property
    def saved_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters that the result holds whole, by name."""
        return {name: shape for one in self.saved for name, shape in one.saved_parameters.shapes.items()}

    @property
    def layout(self) -> AdapterLayout:
        """How the result is stored."""
        return self.compatibility.layout

    @property
    def biased(self) -> frozenset[str]:
        """The modules that have an output bias in the result."""
        return frozenset(module for one in self.saved for module in one.additive)


def open_inputs(
    adapters: Sequence[str | Path],
    *,
    num_examples: Sequence[int | Fraction] | None = None,
    allow_base_mismatch: bool = False,
    average_full: bool = False,
) -> Inputs:
    """Open adapters and check that they may be combined. Nothing but headers and certificates is read.

    The arguments and errors are those of `aggregate`.

    Cost: if no weights are given, every adapter with a certificate is read once to hash it.
    """
    if num_examples is not None:
        _require_weights(adapters, num_examples)
    saved = tuple(open_adapter(locate(str(adapter))) for adapter in adapters)
    compatibility = check_compatible(saved, allow_base_mismatch=allow_base_mismatch, average_full=average_full)
    weights, notes = (given(num_examples), ()) if num_examples is not None else _certified(saved)
    biased = {module: shape for one in saved for module, shape in one.additive.shapes.items()}
    updates = tuple(
        ClientUpdate(str(one.path), one.adapter, count, round_number=1, saved_parameters=_whole(one, biased))
        for one, count in zip(saved, weights.counts, strict=True)
    )
    return Inputs(saved, weights, compatibility, updates, notes)


def _require_weights(adapters: Sequence[str | Path], num_examples: Sequence[int | Fraction]) -> None:
    if len(num_examples) != len(adapters):
        raise InvalidUpdateError(f"expected a weight for each of the {len(adapters)} adapters, got {len(num_examples)}")
    for adapter, number in zip(adapters, num_examples, strict=True):
        if not number > 0:
            raise InvalidUpdateError(
                f"expected a positive weight for every adapter, got {number} for {adapter}; leave that adapter out, or "
                "give it a positive weight"
            )


def _certified(saved: Sequence[SavedAdapter]) -> tuple[Weights, tuple[str, ...]]:
    """What the adapters' certificates say that they count for. One that cannot be believed is noted and not used."""
    known: list[Weight] = []
    notes: list[str] = []
    for one in saved:
        try:
            known.append(certified_weight(one) or ONE_ADAPTER)
        except InvalidAdapterError as error:
            known.append(ONE_ADAPTER)
            notes.append(str(error))
    return combined([one.path for one in saved], known), tuple(notes)


def _whole(saved: SavedAdapter, biased: Mapping[str, tuple[int, ...]]) -> SavedParameters:
    """The parameters that are averaged: saved parameters, and output biases, of which a missing one is zero."""
    biases = {
        module + OUTPUT_BIAS: saved.additive[module] if module in saved.additive else torch.zeros(shape)
        for module, shape in biased.items()
    }
    return {**saved.saved_parameters, **biases}
