"""PEFT adapters on disk: florist reads, compares and writes them here."""

from florist.checkpoint.compatibility import Compatibility, check_compatible, compare
from florist.checkpoint.layout import (
    LINEAR,
    AdapterLayout,
    ConvolutionLayout,
    EmbeddingLayout,
    ExpertLayout,
    LinearLayout,
    ModuleLayout,
)
from florist.checkpoint.locating import locate
from florist.checkpoint.reading import SavedAdapter, open_adapter
from florist.checkpoint.stored_tensors import stored_bytes, stored_ranks, written_bytes
from florist.checkpoint.writing import EncodedAdapter, Export, encode, serving_notes, write_adapter

__all__ = [
    "LINEAR",
    "AdapterLayout",
    "Compatibility",
    "ConvolutionLayout",
    "EmbeddingLayout",
    "EncodedAdapter",
    "ExpertLayout",
    "Export",
    "LinearLayout",
    "ModuleLayout",
    "SavedAdapter",
    "check_compatible",
    "compare",
    "encode",
    "locate",
    "open_adapter",
    "serving_notes",
    "stored_bytes",
    "stored_ranks",
    "write_adapter",
    "written_bytes",
]
