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
class AggregatedAdapter:
    """One adapter made of many.

    Attributes:
        adapter: module name -> factor.
        certificate: what was kept and lost; ``bytes_in`` as stored, ``bytes_out`` before `write`.
        inputs: what went in, in the order given.
        num_examples: the weight of each input, in examples.
        comparison: what the inputs have in common, and the modules that some lack.
        full_parameters: averaged values of the parameters that travel whole.
        additive: module name -> summed output bias.
    """

    adapter: AdapterState
    certificate: Certificate
    inputs: tuple[SavedAdapter, ...]
    num_examples: tuple[int, ...]
    comparison: Comparison
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
            The content of the certificate file.

        Raises:
            OutputExistsError, MissingInputError: as `outputs.require_absent`.
            NonFiniteUpdateError: a value does not fit `dtype`.
        """
        encoded = encode(
            self.adapter,
            layout=self.comparison.layout,
            full_parameters=self.full_parameters,
            additive=self.additive,
            base_model=self.comparison.base_model,
            revision=self.comparison.revision,
            task_type=self.comparison.task_type,
            export=export,
            dtype=dtype,
        )
        certificate = replace(self.certificate, bytes_out=encoded.nbytes)
        document = {
            "florist": version("florist"),
            **(settings or {}),
            **_summary(certificate),
            "inputs": [
                {
                    "path": str(saved.path),
                    "num_examples": count,
                    "weight": count / sum(self.num_examples),
                    "bytes": saved.stored_bytes,
                    "sha256": {
                        file.name: sha256(file)
                        for file in (saved.weights_path, saved.weights_path.with_name(CONFIG_NAME))
                    },
                }
                for saved, count in zip(self.inputs, self.num_examples, strict=True)
            ],
        }
        with new_directory(directory) as draft:
            write_adapter(draft, encoded)
            (draft / CERTIFICATE_NAME).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        return document


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
    counts = tuple(num_examples) if num_examples is not None else (1,) * len(adapters)
    if len(counts) != len(adapters):
        raise InvalidUpdateError(f"expected a weight for each of the {len(adapters)} adapters, got {len(counts)}")
    inputs = tuple(open_adapter(locate(str(adapter))) for adapter in adapters)
    places = [saved.weights_path.resolve() for saved in inputs]
    twice = sorted({str(saved.path) for saved, place in zip(inputs, places, strict=True) if places.count(place) > 1})
    if twice:
        raise InvalidUpdateError(f"expected every adapter once, got {', '.join(twice)} twice; raise its weight instead")
    comparison = check_compatible(inputs, allow_base_mismatch=allow_base_mismatch, average_full=average_full)
    biased = {module: shape for saved in inputs for module, shape in saved.additive.shapes.items()}
    updates = [
        ClientUpdate(
            client_id=str(saved.path),
            adapter=saved.adapter,
            num_examples=count,
            round_number=1,
            full_parameters=_whole(saved, biased),
        )
        for saved, count in zip(inputs, counts, strict=True)
    ]
    broadcast = Florist(rank_rule)(updates)
    whole = broadcast.full_parameters
    return AggregatedAdapter(
        adapter=broadcast.shared,
        certificate=replace(broadcast.certificate, bytes_in=sum(saved.stored_bytes for saved in inputs)),
        inputs=inputs,
        num_examples=counts,
        comparison=comparison,
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
