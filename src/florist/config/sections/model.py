"""The base model of a configuration."""

from typing import Literal

from florist.config.sections.section import Section


class ModelSection(Section):
    """``[model]``: the base that is never modified."""

    name_or_path: str
    """A directory as transformers writes it, or a hub id."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The dtype of the base's parameters; adapters train in float32."""
    quantization: Literal["4bit", "8bit"] | None = None
    """bitsandbytes holds the base in 4 bits (NF4, computed in `dtype`) or in 8; this takes CUDA."""
