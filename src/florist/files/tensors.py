"""Tensors to a file: the one place that writes safetensors."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from florist.files.unwritable import system_error


def save_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors does; the file appears whole or not at all.

    Args:
        tensors: contiguous tensors by their names.
        file: where to write. What is there is replaced.
        metadata: texts for the header of the file.

    Raises:
        OSError: the disk is full, or the system refuses to write the file for another reason. The error that
            safetensors raises then derives from none of Python's. `outputs.new_directory` says what to do.
    """
    try:
        save_file(dict(tensors), file, metadata=dict(metadata) if metadata is not None else None)
    except SafetensorError as error:
        found = system_error(error, file)
        if found is None:
            raise
        raise found from error
