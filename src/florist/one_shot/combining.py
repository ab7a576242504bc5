"""Combine saved adapters into one."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import torch

from florist.aggregation import Florist, lossless_sum, module_parts
from florist.aggregation.certifying import error_above_rounding
from florist.errors import ConfigurationError
from florist.factors import AdapterState, LoraFactor
from florist.one_shot.aggregated import AggregatedAdapter, with_error
from florist.one_shot.inputs import OUTPUT_BIAS, Inputs, open_inputs
from florist.ranks import RankRule
from florist.rounds import Aggregator, Broadcast, ClientUpdate

OnModule = Callable[[int, int], None]
"""A function that is told how many modules lie before the one that is being read, and how many there are.

Modules are read side by side, so that several threads call it, several times for a module, and not quite in order. It
starts again from 0 for a rule that needs every spectrum beforehand.
"""


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
            modules[name] = with_error(module, error_above_rounding(module.error, parts, adapter[name]))
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


def _all_of(broadcast: Broadcast) -> AdapterState:
    """What a broadcast adds to a base that nothing was added to before."""
    parts = [part for part in (broadcast.shared, broadcast.continued) if part]
    # The sum of one part would decompose what is meant to stay a stack.
    return lossless_sum(parts) if len(parts) > 1 else parts[0]


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
