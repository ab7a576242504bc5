"""How large a safetensors file will be, which the shapes of its tensors tell."""

import json
import math
from collections.abc import Mapping

import torch

METADATA = {"format": "pt"}
"""What florist writes into every file; transformers refuses a file whose metadata does not name the framework."""

_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
_ALIGNMENT = 8


def file_bytes(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> int:
    """The exact size of the file that safetensors writes for these tensors of one dtype.

    The file holds eight bytes that say how long the header is, the header in JSON, padded with spaces to a multiple of
    eight, and the numbers. The header names every tensor with its dtype, its shape and where its numbers begin and end.

    Args:
        shapes: the shape of each tensor, by its name.
        dtype: the dtype of all tensors.
    """
    header: dict[str, object] = {"__metadata__": METADATA}
    end = 0
    for name, shape in sorted(shapes.items()):
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": (begin, end)}
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-length // _ALIGNMENT) * _ALIGNMENT + end
