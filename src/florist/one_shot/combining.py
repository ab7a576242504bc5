"""Combine saved adapters into one, and write the result."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch

from florist.aggregation import Florist, lossless_sum, module_parts
from florist.aggregation.certifying import error_above_rounding
from florist.checkpoint import Export, encode, serving_notes, write_adapter
from florist.errors import ConfigurationError
from florist.factors import AdapterState, LoraFactor, stack
from florist.files.outputs import new_directory
from florist.linalg import ordered_spectrum
from florist.one_shot.certificate import certificate_document, write_certified
from florist.one_shot.inputs import OUTPUT_BIAS, Inputs, open_inputs
from florist.ranks import RankRule
from florist.rounds import Aggregator, Broadcast, Certificate, ClientUpdate, ModuleCertificate, SavedParameters

OnModule = Callable[[int, int], None]
"""A function that is told how many modules lie before the one that is being read, and how many there are.

Modules are read side by side, so that several threads call it, several times for a module, and not quite in order. It
starts again from 0 for a rule that needs every spectrum beforehand.
"""


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
            modules[name] = _with_error(replace(module, rank=adapter.specs[name].rank), error)
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
        stored = {name: _as_stored(module, storage_errors[name]) for name, module in self.certificate.modules.items()}
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


def aggregate(
    adapters: Sequence[str | Path],
    *,
    rank_rule: RankRule,
    num_examples: Sequence[int | Fraction] | None = None,
    allow_base_mismatch: bool = False,
    average_full: bool = False,
    device: torch.device | str = "cpu",
    on_module: OnModule | None = None,
) -> AggregatedAdapter:
    """Combine saved PEFT adapters into one by FLoRIST.

    The tensors are read module by module, so that memory does not hold all adapters at once.

    Args:
        adapters: directories as `save_pretrained` writes them, weights files, or hub ids in the local cache.
        rank_rule: how many directions each module keeps. `ByteBudget` counts factors alone; `FileBudget` counts the
            file that is written.
        num_examples: the training examples behind each adapter as whole numbers, or fractions, which are shares of an
            unknown number. If left out, an aggregate counts as much as its certificate says went into it, and any
            other adapter counts once: an aggregate of aggregates is that of all the adapters in them.
        allow_base_mismatch: whether the adapters may name their base models differently.
        average_full: whether to average parameters that were trained whole. Otherwise they are refused.
        device: where to decompose, ``"cuda"`` for instance. The result is on the CPU.
        on_module: a function that is told how far the work is.

    Raises:
        ConfigurationError: torch cannot use `device`, or not in float64.
        MissingInputError, InvalidAdapterError, UnsupportedAdapterError: `checkpoint.open_adapter` refuses an adapter.
        IncompatibleAdaptersError: the adapters cannot be combined. The message lists every reason.
        InvalidUpdateError: the number of weights is not that of the adapters, a weight is not positive, no weights are
            given and the certificates count in unlike units, or a newer florist wrote a certificate.
        NonFiniteUpdateError: a factor holds NaN or infinity.

    >>> from tempfile import TemporaryDirectory
    >>> import florist
    >>> from florist.checkpoint import encode, write_adapter
    >>> sites = []
    >>> with TemporaryDirectory() as folder:
    ...     for name, rank in (("site1", 1), ("site2", 2)):
    ...         layer = florist.LoraFactor(B=torch.eye(4)[:, :rank], A=torch.eye(3)[:rank])
    ...         sites.append(Path(folder) / name)
    ...         sites[-1].mkdir()
    ...         write_adapter(sites[-1], encode(florist.AdapterState.of({"layer": layer})))
    ...     merged = florist.aggregate(sites, rank_rule=florist.EnergyThreshold(0.8), num_examples=[3, 1])
    >>> merged.adapter["layer"].rank  # site2's second direction has a weight of 1/4 and 1/17 of the energy
    1
    >>> round(merged.certificate.relative_error**2, 4) == round(1 / 17, 4)
    True
    """
    inputs = open_inputs(
        adapters, num_examples=num_examples, allow_base_mismatch=allow_base_mismatch, average_full=average_full
    )
    return combine(inputs, Florist(rank_rule), device=device, on_module=on_module)


def combine(
    inputs: Inputs,
    aggregator: Aggregator,
    *,
    device: torch.device | str = "cpu",
    on_module: OnModule | None = None,
) -> AggregatedAdapter:
    """Combine opened adapters into one by any method that takes both halves from every client.

    The result is what clients would hold after one round from the pristine base. It is what the method adds, what it
    continues, or the sum of both without loss.

    Args:
        inputs: the adapters, as `open_inputs` returns them.
        aggregator: the method. FedIT and FedEx-LoRA average halves apart, which means little for adapters that did
            not start from one A. The certificate says what it costs.
        device: where to decompose. The result is on the CPU.
        on_module: a function that is told how far the work is.

    Raises:
        ConfigurationError: torch cannot use `device`, or not in float64.
        InvalidUpdateError: a weight is not positive, or the method cannot combine saved adapters.
        NonFiniteUpdateError: a factor holds NaN or infinity.
    """
    require_device(device)
    updates = inputs.updates if on_module is None else _observed(inputs.updates, on_module)
    broadcast = aggregator([replace(update, adapter=update.adapter.on(device)) for update in updates])
    whole, adapter = broadcast.saved_parameters, _all_of(broadcast).on("cpu")
    modules = {
        name: replace(module, rank=adapter.specs[name].rank) for name, module in broadcast.certificate.modules.items()
    }
    if broadcast.shared and broadcast.continued:  # their sum in one factor was rounded once more
        for name, module in modules.items():
            parts = partial(module_parts, updates, name)
            modules[name] = _with_error(module, error_above_rounding(module.error, parts, adapter[name]))
    bytes_in = sum(one.stored_bytes for one in inputs.saved)
    return AggregatedAdapter(
        adapter=adapter,
        certificate=replace(broadcast.certificate, modules=modules, bytes_in=bytes_in),
        inputs=inputs,
        saved_parameters={name: tensor for name, tensor in whole.items() if not name.endswith(OUTPUT_BIAS)},
        additive={
            name.removesuffix(OUTPUT_BIAS): tensor for name, tensor in whole.items() if name.endswith(OUTPUT_BIAS)
        },
    )


def require_device(device: torch.device | str) -> None:
    """Check that torch can compute on a device.

    Raises:
        ConfigurationError: it cannot, or not in float64.
    """
    try:
        torch.zeros(1, dtype=torch.float64, device=device).item()
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(
            f"expected a device that torch can use in float64, got {str(device)!r}: {reason}; use cpu"
        ) from error


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


def _all_of(broadcast: Broadcast) -> AdapterState:
    """What a broadcast adds to a base that nothing was added to before."""
    parts = [part for part in (broadcast.shared, broadcast.continued) if part]
    # The sum of one part would decompose what is meant to stay a stack.
    return lossless_sum(parts) if len(parts) > 1 else parts[0]


def _as_stored(module: ModuleCertificate, storage_error: float) -> ModuleCertificate:
    """The certificate of a module once its factors have been rounded.

    What a rank leaves out is orthogonal to both factors, so that the squares add up. Only the product of the two
    roundings is not, which is smaller by another factor of the dtype's eps. What a method that does not cut gets wrong
    shares a direction with rounding by chance alone, and the error is then right to within `storage_error`.
    """
    return _with_error(module, math.hypot(module.error, storage_error))


def _with_error(module: ModuleCertificate, error: float) -> ModuleCertificate:
    kept = 1.0 - (error / module.norm) ** 2 if module.norm else 1.0
    return replace(module, error=error, energy_kept=kept)


def _observed(updates: Sequence[ClientUpdate], on_module: OnModule) -> tuple[ClientUpdate, ...]:
    """The same updates, which tell when one of their modules is read. That is about in the order of the names."""
    names = sorted(set().union(*(update.adapter for update in updates)))
    positions = {name: position for position, name in enumerate(names)}

    def read(adapter: AdapterState, name: str) -> LoraFactor:
        on_module(positions[name], len(positions))
        return adapter[name]

    return tuple(
        replace(update, adapter=AdapterState(update.adapter.specs, partial(read, update.adapter))) for update in updates
    )
