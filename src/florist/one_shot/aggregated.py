"""One adapter that was made of many: cut further, or written with its certificate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from florist.aggregation import module_parts
from florist.aggregation.certifying import error_above_rounding
from florist.checkpoint import Export, encode, serving_notes, write_adapter
from florist.errors import ConfigurationError
from florist.factors import AdapterState, LoraFactor, stack
from florist.files.outputs import new_directory
from florist.linalg import ordered_spectrum
from florist.one_shot.certificate import certificate_document, write_certified
from florist.one_shot.inputs import Inputs
from florist.rounds import Certificate, ModuleCertificate, SavedParameters


@dataclass(frozen=True, slots=True, eq=False)
class AggregatedAdapter:
    """One adapter that was made of many.

    Attributes:
        adapter: module name -> factor.
        certificate: what the ranks kept and lost. ``bytes_in`` counts the inputs as they are stored, and ``bytes_out``
            the factors before they are written.
        inputs: the adapters that went in.
        saved_parameters: the averaged values of the parameters that are saved whole.
        additive: module name -> the summed output bias.

    >>> from tempfile import TemporaryDirectory
    >>> import florist
    >>> from florist.checkpoint import encode, write_adapter
    >>> with TemporaryDirectory() as folder:
    ...     for name, value in (("site1", 1.0), ("site2", 3.0)):
    ...         layer = florist.LoraFactor(B=torch.full((4, 1), value), A=torch.ones(1, 3))
    ...         (Path(folder) / name).mkdir()
    ...         write_adapter(Path(folder) / name, encode(florist.AdapterState.of({"layer": layer})))
    ...     sites = [Path(folder) / name for name in ("site1", "site2")]
    ...     merged = florist.aggregate(sites, rank_rule=florist.EnergyThreshold(0.9), num_examples=[3, 1])
    ...     certificate = merged.write(Path(folder) / "merged")
    ...     written = florist.open_adapter(Path(folder) / "merged").adapter["layer"]
    >>> certificate["num_examples"], certificate["total_rank"], certificate["relative_error"] < 1e-5
    (4, 1, True)
    >>> written.delta_weight()[0].round(decimals=4)  # 3/4 of 1 and 1/4 of 3
    tensor([1.5000, 1.5000, 1.5000])
    """

    adapter: AdapterState
    certificate: Certificate
    inputs: Inputs
    saved_parameters: SavedParameters
    additive: SavedParameters

    def leading(self, ranks: Mapping[str, int]) -> "AggregatedAdapter":
        """Cut every module to its first components, and certify the result. Nothing is decomposed again.

        Args:
            ranks: how many components each module keeps. A module that has fewer keeps them all.

        Cost: that of `ordered_spectrum`. A module of which next to nothing is left out is read from the inputs again,
        for the error of what is kept.
        """
        adapter = AdapterState.of({name: factor.leading(ranks[name]) for name, factor in self.adapter.items()})
        modules: dict[str, ModuleCertificate] = {}
        for name, module in self.certificate.modules.items():
            # What was left out before is orthogonal to what is left out now, so that the squares add up.
            left_out = ordered_spectrum(self.adapter[name]).discarded_energy(ranks[name]) ** 0.5
            found = math.hypot(module.error, left_out)
            error = error_above_rounding(found, partial(module_parts, self.inputs.updates, name), adapter[name])
            modules[name] = with_error(replace(module, rank=adapter.specs[name].rank), error)
        bytes_out = self.certificate.bytes_out - self.adapter.nbytes + adapter.nbytes
        return replace(
            self, adapter=adapter, certificate=replace(self.certificate, modules=modules, bytes_out=bytes_out)
        )

    def write(
        self,
        directory: Path,
        *,
        export: Export = Export.PER_MODULE,
        pad_rank_to: int | None = None,
        dtype: torch.dtype = torch.float32,
        max_bytes: int | None = None,
        settings: Mapping[str, Any] | None = None,
        beside: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Write a PEFT adapter, its certificate and its model card, whole or not at all.

        Args:
            directory: the directory to create.
            export: whether every module has its own rank.
            pad_rank_to: the rank of all modules with `Export.UNIFORM`; None for the largest rank.
            dtype: the dtype of the stored tensors.
            max_bytes: the largest size of adapter_model.safetensors. `FileBudget` chooses ranks that keep to it.
            settings: how the adapter was made, for the head of the certificate.
            beside: further text files of the directory, by name.

        Returns:
            The content of the certificate file. Its errors and energies are those of what was written, which count
            what the method leaves out and what storing in `dtype` rounds off. The float32 arithmetic of the sum, about
            1e-7 of the norm, counts where it is not negligible beside them. Its ``notes`` say what servers other than
            PEFT make of the result.

        Raises:
            OutputExistsError, UnwritableOutputError: `outputs.require_absent` refuses the directory.
            ConfigurationError: the file would take more than `max_bytes`, or `pad_rank_to` does not fit.
            InvalidAdapterError: the weights of an input have changed since it was opened.
            NonFiniteUpdateError: a value does not fit `dtype`.
        """
        common = self.inputs.compatibility
        encoded = encode(
            self.adapter,
            layout=common.layout,
            saved_parameters=self.saved_parameters,
            additive=self.additive,
            base_model=common.base_model,
            revision=common.revision,
            task_type=common.task_type,
            auto_mapping=common.auto_mapping,
            export=export,
            pad_rank_to=pad_rank_to,
            dtype=dtype,
        )
        if max_bytes is not None and encoded.file_bytes > max_bytes:
            raise ConfigurationError(
                f"expected a file of at most {max_bytes} bytes, got {encoded.file_bytes}; allow more, or choose ranks "
                "that fit, as one_shot.FileBudget does"
            )
        storage_errors = {name: storage_error(factor, dtype) for name, factor in self.adapter.items()}
        stored = {name: as_stored(module, storage_errors[name]) for name, module in self.certificate.modules.items()}
        content = certificate_document(
            replace(self.certificate, modules=stored, bytes_out=encoded.nbytes),
            storage_errors=storage_errors,
            saved=self.inputs.saved,
            weights=self.inputs.weights,
            notes=(*self.inputs.notes, *serving_notes(encoded)),
            settings=settings or {},
        )
        with new_directory(directory) as draft:
            write_adapter(draft, encoded)
            content = write_certified(draft, content, encoded.config, self.saved_parameters)
            for name, text in (beside or {}).items():
                (draft / name).write_text(text, encoding="utf-8")
        return content


def storage_error(factor: LoraFactor, dtype: torch.dtype) -> float:
    """``||B A - B' A'||_F`` with B' and A' rounded to `dtype`. It is exactly 0 if nothing is rounded.

    ``B A - B' A' = (B - B') A + B' (A - A')`` is a sum of two small products, whose norm the trace identity gives
    without cancellation.

    Cost: O((m + n) r^2) in float64, and nothing if the factor has that dtype already.
    """
    if factor.B.dtype == dtype:
        return 0.0
    exact = factor.to(dtype=torch.float64)
    rounded = factor.to(dtype=dtype).to(dtype=torch.float64)
    off = stack([LoraFactor(exact.B - rounded.B, exact.A), LoraFactor(rounded.B, exact.A - rounded.A)])
    return off.energy() ** 0.5


def as_stored(module: ModuleCertificate, storage_error: float) -> ModuleCertificate:
    """The certificate of a module once its factors have been rounded.

    What a rank leaves out is orthogonal to both factors, so that the squares add up. Only the product of the two
    roundings is not, which is smaller by another factor of the dtype's eps. What a method that does not cut gets wrong
    shares a direction with rounding by chance alone, and the error is then right to within `storage_error`.
    """
    return with_error(module, math.hypot(module.error, storage_error))


def with_error(module: ModuleCertificate, error: float) -> ModuleCertificate:
    """The certificate of a module with another error, and the energy that is then kept."""
    kept = 1.0 - (error / module.norm) ** 2 if module.norm else 1.0
    return replace(module, error=error, energy_kept=kept)
