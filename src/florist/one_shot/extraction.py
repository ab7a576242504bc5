"""An adapter from a model that was fine-tuned whole: what training changed, cut to the rank of a rule and certified."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from florist.aggregation.cutting import cut_by_rule
from florist.checkpoint import Export, encode, serving_notes, write_adapter
from florist.checkpoint.model_weights import ModelWeights
from florist.errors import ConfigurationError, NonFiniteUpdateError
from florist.factors import AdapterState, FactorSpec, LoraFactor
from florist.files.outputs import new_directory
from florist.linalg import ThinSvd, WeightedFactor, decompose_dense
from florist.one_shot.aggregated import as_stored, storage_error
from florist.one_shot.certificate import document, write_certified
from florist.one_shot.combining import OnModule, require_device
from florist.one_shot.model_difference import ModelDifference
from florist.one_shot.weights import ONE_ADAPTER
from florist.ranks import RankRule
from florist.rounds import Certificate, ModuleCertificate

_ROUNDING_MARGIN = 2.0
"""Above this many times the largest singular value that rounding has by expectation, a value is no rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class ExtractedAdapter:
    """What fine-tuning changed, as an adapter.

    Attributes:
        adapter: module name -> factor, on the CPU.
        certificate: what the ranks kept and lost of the difference. ``bytes_in`` counts the whole fine-tuned model.
        difference: the models, and what else differs.
    """

    adapter: AdapterState
    certificate: Certificate
    difference: ModelDifference

    def write(
        self,
        directory: Path,
        *,
        base_model: str,
        revision: str | None = None,
        export: Export = Export.PER_MODULE,
        pad_rank_to: int | None = None,
        dtype: torch.dtype = torch.float32,
        max_bytes: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write a PEFT adapter, its certificate and its model card, whole or not at all.

        Args:
            directory: the directory to create.
            base_model: what the adapter calls its base.
            revision: the revision of the base.
            export: whether every module has its own rank.
            pad_rank_to: the rank of all modules with `Export.UNIFORM`; None for the largest rank.
            dtype: the dtype of the stored tensors.
            max_bytes: the largest size of adapter_model.safetensors.
            settings: how the adapter was made, for the head of the certificate.

        Returns:
            The content of the certificate file. Beside what an aggregate's says, it has the hashes of the base, and
            what else the fine-tuned model changed: ``saved`` names what is kept whole, ``left_out`` what is not.

        Raises:
            OutputExistsError, UnwritableOutputError: `outputs.require_absent` refuses the directory.
            ConfigurationError: the file would take more than `max_bytes`, or `pad_rank_to` does not fit.
            InvalidAdapterError: the weights of a model have changed since it was opened.
            NonFiniteUpdateError: a value does not fit `dtype`.

        Cost: it reads both models to hash them.
        """
        of = self.difference
        saved = of.saved_parameters
        encoded = encode(
            self.adapter,
            layout=of.layout,
            saved_parameters=saved,
            additive=of.additive,
            base_model=base_model,
            revision=revision,
            task_type=of.layers.task_type,
            auto_mapping=of.layers.auto_mapping,
            export=export,
            pad_rank_to=pad_rank_to,
            dtype=dtype,
        )
        if max_bytes is not None and encoded.file_bytes > max_bytes:
            raise ConfigurationError(
                f"expected a file of at most {max_bytes} bytes, got {encoded.file_bytes}; allow more"
            )
        errors = {name: storage_error(factor, dtype) for name, factor in self.adapter.items()}
        stored = {name: as_stored(module, errors[name]) for name, module in self.certificate.modules.items()}
        content = document(
            replace(self.certificate, modules=stored, bytes_out=encoded.nbytes),
            storage_errors=errors,
            num_examples=ONE_ADAPTER.count,
            counted_in=ONE_ADAPTER.counted_in,
            notes=(*of.notes, *serving_notes(encoded)),
            settings=settings or {},
            inputs=[{"path": str(of.tuned.path), "num_examples": 1, "weight": 1.0, **_evidence(of.tuned)}],
        )
        content |= {
            "base": {"path": str(of.base.path), **_evidence(of.base)},
            "saved": [*of.whole, *(f"{module}.bias" for module in of.biases)],
            "left_out": {name: by if math.isfinite(by) else None for name, by in of.left_out.items()},
        }
        with new_directory(directory) as draft:
            write_adapter(draft, encoded)
            return write_certified(draft, content, encoded.config, saved)


def _evidence(model: ModelWeights) -> dict[str, Any]:
    return {"bytes": model.stored_bytes, "sha256": model.sha256()}


def extract(
    difference: ModelDifference,
    rank_rule: RankRule,
    *,
    device: torch.device | str = "cpu",
    on_module: OnModule | None = None,
) -> ExtractedAdapter:
    """Decompose what fine-tuning changed, one module after the other, and cut it to the ranks of a rule.

    The difference of two weights is dense, and so is its decomposition: there are no factors to start from. For a rule
    that asks for everything, as tau = 1, a direction counts as zero that rounding the tuned weight to its dtype may
    have made: an adapter that was merged into the base comes back at its own rank. With a smaller tau the numbers are
    taken as they are stored.

    Args:
        difference: the two models, from `compare_models`.
        rank_rule: how many directions each module keeps.
        device: where to decompose, ``"cuda"`` for instance. The result is on the CPU.
        on_module: a function that is told how far the work is.

    Raises:
        ConfigurationError: torch cannot use `device`, or not in float64.
        NonFiniteUpdateError: a weight holds NaN or infinity.

    Cost: `linalg.decompose_dense` a module, O(m n min(m, n)); twice for a rule that looks at all modules together. The
    memory of the adapter and of one module, about six times its weight in float32; of up to four modules where torch
    may use as many threads (`linalg.parallel.in_order`).
    """
    require_device(device)
    modules = list(difference.modules)
    positions = {name: position for position, name in enumerate(modules)}

    def svd(module: str, energy: float) -> ThinSvd:
        if on_module is not None:
            on_module(positions[module], len(modules))
        try:
            found = decompose_dense(difference.weight(module).to(device), energy=energy)
        except NonFiniteUpdateError as error:
            raise NonFiniteUpdateError(f"{module}: {error}") from error
        if energy < 1 or not found.S.numel():
            return found
        floor = _ROUNDING_MARGIN * difference.rounding(module) / float(found.S[0])
        spectrum = replace(found.spectrum, resolution=max(found.spectrum.resolution, floor))
        return replace(found, spectrum=spectrum)

    factors: dict[str, LoraFactor] = {}
    certified: dict[str, ModuleCertificate] = {}
    for cut in cut_by_rule(rank_rule, modules, svd, lambda module: [_dense_part(difference, module)]):
        factors[cut.module] = cut.factor.to(device="cpu")
        certified[cut.module] = ModuleCertificate(
            shape=difference.shape(cut.module),
            rank=cut.factor.rank,
            input_rank=min(difference.shape(cut.module)),
            energy_kept=1.0 - (cut.error / cut.norm) ** 2 if cut.norm else 1.0,
            norm=cut.norm,
            error=cut.error,
        )
    adapter = AdapterState.of(factors)
    return ExtractedAdapter(
        adapter, Certificate(certified, bytes_in=difference.tuned.stored_bytes, bytes_out=adapter.nbytes), difference
    )


def _dense_part(difference: ModelDifference, module: str) -> WeightedFactor:
    """A difference as a product with the identity, for the error of a cut that rounding may exceed."""
    m, n = difference.shape(module)
    dtype = difference.dtype(module)
    return WeightedFactor(1.0, FactorSpec(m, n, min(m, n), dtype), partial(_as_factor, difference, module))


def _as_factor(difference: ModelDifference, module: str) -> LoraFactor:
    W = difference.weight(module)
    m, n = W.shape
    eye = torch.eye(min(m, n), dtype=W.dtype)
    return LoraFactor(eye, W) if m <= n else LoraFactor(W, eye)
