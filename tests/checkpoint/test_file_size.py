"""The size that is computed is that of the file that safetensors writes."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from florist.checkpoint import AdapterLayout, Export, encode, written_bytes
from florist.checkpoint.file_size import METADATA, file_bytes
from florist.factors import AdapterState, LoraFactor
from tests.builders import adapter

from .adapters import written

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@settings(max_examples=60)
@given(
    shapes=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
            lambda n: n != "__metadata__"
        ),
        st.lists(st.integers(1, 12), max_size=4).map(tuple),
        max_size=12,
    ),
    dtype=st.sampled_from(DTYPES),
)
def test_the_size_is_known_before_the_file_is_written(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder, "file.safetensors")
        save_file({name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}, file, metadata=METADATA)
        assert file_bytes(shapes, dtype) == file.stat().st_size


EXPERTS = {f"layers.0.block_sparse_moe.experts.{e}.w{w}": (6, 5) for e in range(3) for w in (1, 2, 3)}


@pytest.mark.parametrize("export", Export)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "beside",
    [
        {},
        {"saved_parameters": {"score.weight": torch.ones(3, 7), "b.bias": torch.ones(5)}},
        {"additive": {"b": torch.ones(4)}},
    ],
    ids=["factors", "saved parameters", "output biases"],
)
@pytest.mark.parametrize("rank", [0, 1, 12])
def test_an_adapter_takes_what_was_computed(
    tmp_path: Path, export: Export, dtype: torch.dtype, beside: dict[str, Any], rank: int
) -> None:
    update = AdapterState.of(
        {
            **adapter(2, 0, shapes=EXPERTS, dtype=torch.float32),
            **{name: LoraFactor(torch.ones(4, rank), torch.ones(rank, 7)) for name in ("b", "c")},
            "experts.0.w1": LoraFactor(torch.ones(4, 5), torch.ones(5, 3)),
        }
    )
    encoded = encode(update, export=export, dtype=dtype, **beside)
    size = (written(encoded, tmp_path / "out") / "adapter_model.safetensors").stat().st_size
    assert encoded.file_bytes == size
    if export is Export.PER_MODULE:
        computed = written_bytes(
            {name: spec.shape for name, spec in update.specs.items()},
            {name: spec.rank for name, spec in update.specs.items()},
            layout=AdapterLayout(),
            saved_shapes={name: tuple(t.shape) for name, t in beside.get("saved_parameters", {}).items()},
            additive=beside.get("additive", {}).keys(),
            dtype=dtype,
        )
        assert computed == size
