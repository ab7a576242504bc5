"""Saved adapters in, one saved adapter out: aggregation without rounds, with a certificate."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from florist.aggregation import Florist
from florist.checkpoint import (
    Comparison,
    Export,
    SavedAdapter,
    check_compatible,
    encode,
    locate,
    open_adapter,
    serving_notes,
    write_adapter,
)
from florist.checkpoint.reading import CONFIG_NAME
from florist.errors import InvalidUpdateError
from florist.factors import AdapterState
from florist.outputs import new_directory, sha256
from florist.ranks import RankRule
from florist.rounds import Certificate, ClientUpdate, FullParameters

CERTIFICATE_NAME = "florist.json"
_BIAS = ".lora_B.bias"


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Adapters that may be combined, opened and weighed.

    Attributes:
        saved: the adapters, in the order given.
        num_examples: the weight of each.
        comparison: what they have in common, and the modules that some lack.
        updates: the same as updates of one round.
    """

    saved: tuple[SavedAdapter, ...]
    num_examples: tuple[int, ...]
    comparison: Comparison
    updates: tuple[ClientUpdate, ...]


@dataclass(frozen=True, slots=True, eq=False)
class AggregatedAdapter:
    """One adapter made of many.

    Attributes:
        adapter: module name -> factor.
        certificate: what was kept and lost; ``bytes_in`` as stored, ``bytes_out`` before `write`.
        inputs: what went in.
        full_parameters: averaged values of the parameters that travel whole.
        additive: module name -> summed output bias.
    """

    adapter: AdapterState
    certificate: Certificate
    inputs: Inputs
    full_parameters: FullParameters
    additive: FullParameters

    def write(
        self,
        directory: Path,
        *,
        export: Export = Export.PER_MODULE,
        dtype: torch.dtype = torch.float32,
        settings: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write a PEFT adapter and its certificate, whole or not at all.

        Args:
            directory: to create.
            export: a rank for every module or one for all.
            dtype: of the stored tensors.
            settings: how the adapter was made, to be put at the head of the certificate.

        Returns:
            The content of the certificate file. Its ``notes`` say what servers other than PEFT make of the result.

        Raises:
            OutputExistsError, MissingInputError: as `outputs.require_absent`.
            NonFiniteUpdateError: a value does not fit `dtype`.
        """
        common = self.inputs.comparison
        encoded = encode(
            self.adapter,
            layout=common.layout,
            full_parameters=self.full_parameters,
            additive=self.additive,
            base_model=common.base_model,
            revision=common.revision,
            task_type=common.task_type,
            export=export,
            dtype=dtype,
        )
        certificate = replace(self.certificate, bytes_out=encoded.nbytes)
        document = {
            "florist": version("florist"),
            **(settings or {}),
            **_summary(certificate),
            "notes": list(serving_notes(encoded)),
            "inputs": [
                {
                    "path": str(saved.path),
                    "num_examples": count,
                    "weight": count / sum(self.inputs.num_examples),
                    "bytes": saved.stored_bytes,
                    "sha256": {
                        file.name: sha256(file)
                        for file in (saved.weights_path, saved.weights_path.with_name(CONFIG_NAME))
                    },
                }
                for saved, count in zip(self.inputs.saved, self.inputs.num_examples, strict=True)
            ],
        }
        with new_directory(directory) as draft:
            write_adapter(draft, encoded)
            (draft / CERTIFICATE_NAME).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        return document


def open_inputs(
    adapters: Sequence[str | Path],
    *,
    num_examples: Sequence[int] | None = None,
    allow_base_mismatch: bool = False,
    average_full: bool = False,
) -> Inputs:
    """Open adapters and check that they may be combined; nothing but headers is read.

    Args, Raises: as `aggregate`.
    """
    counts = tuple(num_examples) if num_examples is not None else (1,) * len(adapters)
    if len(counts) != len(adapters):
        raise InvalidUpdateError(f"expected a weight for each of the {len(adapters)} adapters, got {len(counts)}")
    saved = tuple(open_adapter(locate(str(adapter))) for adapter in adapters)
    places = [one.weights_path.resolve() for one in saved]
    twice = sorted({str(one.path) for one, place in zip(saved, places, strict=True) if places.count(place) > 1})
    if twice:
        raise InvalidUpdateError(f"expected every adapter once, got {', '.join(twice)} twice; raise its weight instead")
    comparison = check_compatible(saved, allow_base_mismatch=allow_base_mismatch, average_full=average_full)
    biased = {module: shape for one in saved for module, shape in one.additive.shapes.items()}
    updates = tuple(
        ClientUpdate(str(one.path), one.adapter, count, round_number=1, full_parameters=_whole(one, biased))
        for one, count in zip(saved, counts, strict=True)
    )
    return Inputs(saved, counts, comparison, updates)


def aggregate(
    adapters: Sequence[str | Path],
    *,
    rank_rule: RankRule,
    num_examples: Sequence[int] | None = None,
    allow_base_mismatch: bool = False,
    average_full: bool = False,
) -> AggregatedAdapter:
    """Combine saved PEFT adapters into one by FLoRIST.

    The tensors are read module by module, so that memory does not hold all adapters at once.

    Args:
        adapters: directories as `save_pretrained` writes them, weights files, or hub ids in the local cache.
        rank_rule: how many directions each module keeps.
        num_examples: weight of each adapter, in examples or any other unit; equal by default.
        allow_base_mismatch: accept unlike names of the base model.
        average_full: average parameters that were trained whole, where they would be refused.

    Raises:
        MissingInputError, InvalidAdapterError, UnsupportedAdapterError: as `checkpoint.open_adapter`.
        IncompatibleAdaptersError: they cannot be combined; the message lists every reason.
        InvalidUpdateError: the number of weights is not that of the adapters, a weight is not positive, or an adapter
            is given twice.
        NonFiniteUpdateError: a factor holds NaN or infinity.
    """
    inputs = open_inputs(
        adapters, num_examples=num_examples, allow_base_mismatch=allow_base_mismatch, average_full=average_full
    )
    broadcast = Florist(rank_rule)(inputs.updates)
    whole = broadcast.full_parameters
    return AggregatedAdapter(
        adapter=broadcast.shared,
        certificate=replace(broadcast.certificate, bytes_in=sum(one.stored_bytes for one in inputs.saved)),
        inputs=inputs,
        full_parameters={name: tensor for name, tensor in whole.items() if not name.endswith(_BIAS)},
        additive={name.removesuffix(_BIAS): tensor for name, tensor in whole.items() if name.endswith(_BIAS)},
    )


def _whole(saved: SavedAdapter, biased: Mapping[str, tuple[int, ...]]) -> FullParameters:
    """What is averaged: parameters that travel whole, and output biases, of which a missing one is zero."""
    biases = {
        module + _BIAS: saved.additive[module] if module in saved.additive else torch.zeros(shape)
        for module, shape in biased.items()
    }
    return {**saved.full_parameters, **biases}


def _summary(certificate: Certificate) -> dict[str, Any]:
    return {
        "total_rank": certificate.total_rank,
        "input_rank": certificate.input_rank,
        "bytes_in": certificate.bytes_in,
        "bytes_out": certificate.bytes_out,
        "relative_error": certificate.relative_error,
        "modules": {
            name: {
                "rank": module.rank,
                "input_rank": module.input_rank,
                "energy_kept": module.energy_kept,
                "norm": module.norm,
                "error": module.error,
                "relative_error": module.relative_error,
                "shape": list(module.shape),
                "absent_from": list(module.absent_from),
            }
            for name, module in certificate.modules.items()
        },
    }
