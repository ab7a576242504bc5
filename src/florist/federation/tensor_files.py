"""The tensor files of a run's state: adapters, parameters that travel whole, residuals, and what a codec packed."""

from pathlib import Path

from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import load_file

from florist.compression.packed import PackedAdapter
from florist.compression.residual import Residual
from florist.factors import AdapterState, LoraFactor
from florist.files import strict_json
from florist.files.tensors import save_tensors as write_tensors
from florist.rounds import SavedParameters

_DESCRIBED = TypeAdapter(dict[str, str])
_DESCRIPTION = "packed"
"""The entry in the header of a file that has what a codec packed."""


def save_residual(residual: Residual, adapter: Path, saved_parameters: Path) -> None:
    """Write a residual as two files; nothing where it is nothing."""
    if residual:
        save_adapter(residual.adapter, adapter)
        save_tensors(residual.saved_parameters, saved_parameters)


def load_residual(adapter: Path, saved_parameters: Path) -> Residual:
    """Read what `save_residual` wrote."""
    return Residual(load_adapter(adapter), load_file(saved_parameters))


def load_broadcast(file: Path) -> AdapterState:
    """Read an adapter, as it is or as a codec packed it."""
    packed = load_packed(file)
    return packed.unpacked() if packed is not None else load_adapter(file)


def save_packed(packed: PackedAdapter, file: Path) -> None:
    """Write what a codec packed, as it is sent."""
    # One entry: several come in any order, and a run that goes on has to end with the same bytes.
    metadata = {_DESCRIPTION: strict_json.encode(dict(packed.description()))}
    write_tensors(packed.tensors(), file, metadata)


def load_packed(file: Path) -> PackedAdapter | None:
    """Read what a codec packed; None where the file has an adapter as it is."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    if not metadata:
        return None
    return PackedAdapter.described(_DESCRIBED.validate_json(metadata[_DESCRIPTION]), load_file(file))


def save_adapter(adapter: AdapterState, file: Path) -> None:
    """Write the factors of an adapter."""
    save_tensors(
        {f"{name}.{half}": getattr(factor, half) for name, factor in adapter.items() for half in ("B", "A")}, file
    )


def save_tensors(tensors: SavedParameters, file: Path) -> None:
    """Write tensors by name."""
    write_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def load_adapter(file: Path) -> AdapterState:
    """Read what `save_adapter` wrote."""
    halves: SavedParameters = load_file(file)
    names = sorted({name.rpartition(".")[0] for name in halves})
    return AdapterState.of({name: LoraFactor(halves[f"{name}.B"], halves[f"{name}.A"]) for name in names})
