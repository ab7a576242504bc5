"""``florist extract``: exit status, stdout, stderr, and what is left on disk."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from florist.checkpoint import open_adapter

from .hub import Hub
from .running import Run, refused

FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors", "florist.json"]


@pytest.fixture
def tuned(tiny_llama: Path, tmp_path: Path) -> Path:
    """The tiny Llama after an update of rank 2 of every q_proj, and another norm."""
    shutil.copytree(tiny_llama, tmp_path / "tuned")
    tensors = {name: tensor.clone() for name, tensor in load_file(tiny_llama / "model.safetensors").items()}
    draw = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if name.endswith("q_proj.weight"):
            m, n = tensor.shape
            tensors[name] = tensor + 0.05 * torch.randn(m, 2, generator=draw) @ torch.randn(2, n, generator=draw)
    tensors["model.norm.weight"] += 0.5
    save_file(tensors, tmp_path / "tuned" / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "tuned"


def test_extract_prints_a_table_and_writes_an_adapter(
    florist: Run, tiny_llama: Path, tuned: Path, tmp_path: Path
) -> None:
    result = florist("extract", tiny_llama, tuned, "-o", tmp_path / "out", "--tau", "1", "--others", "leave-out")
    assert result.returncode == 0, result.stderr
    assert "q_proj" in result.stdout
    assert "2 of 15 linear modules changed" in result.stdout
    assert "without what else was changed: model.norm.weight" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tuned"]
    saved = open_adapter(tmp_path / "out")
    assert saved.base_model == str(tiny_llama)
    assert {spec.rank for spec in saved.adapter.specs.values()} == {2}
    assert "extracted from the whole fine-tuned model" in (tmp_path / "out" / "README.md").read_text()


def test_json_is_the_certificate_and_names_what_is_saved(
    florist: Run, tiny_llama: Path, tuned: Path, tmp_path: Path, hub: Hub
) -> None:
    asked = ("extract", tiny_llama, tuned, "-o", tmp_path / "out", "--rank", "1", "--others", "save", "--json")
    result = florist(*asked, "--push-to-hub", "me/adapter")
    assert result.returncode == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    assert (document["method"], document["others"], document["total_rank"]) == ("extract", "save", 2)
    assert (document["saved"], document["left_out"]) == (["model.norm.weight"], {})
    assert document["base"]["sha256"].keys() == {"model.safetensors"}
    assert hub.asked[-1] == ("me/adapter", FILES)
    # The adapter goes into an aggregate as any other does.
    again = florist("aggregate", tmp_path / "out", "-o", tmp_path / "again", "--average-full")
    assert again.returncode == 0, again.stderr


def test_refusals_are_one_line_and_leave_nothing(florist: Run, tiny_llama: Path, tuned: Path, tmp_path: Path) -> None:
    asked = ("extract", tiny_llama, tuned, "-o", tmp_path / "out")
    assert "also changed model.norm.weight" in refused(florist(*asked))
    assert "contradict each other" in refused(florist(*asked, "--tau", "0.9", "--rank", "3"))
    assert "--pad-rank-to is the rank of --export uniform" in refused(florist(*asked, "--pad-rank-to", "3"))
    assert "florist downloads nothing" in refused(florist("extract", "no/model", tuned, "-o", tmp_path / "out"))
    assert "expected model.safetensors" in refused(florist("extract", tmp_path, tuned, "-o", tmp_path / "out"))
    small = florist(*asked, "--others", "leave-out", "--budget", "100B")
    assert "expected a budget that holds rank 1" in small.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tuned"]
    shutil.copytree(tuned, tmp_path / "out")
    assert "out" in refused(florist(*asked, "--others", "leave-out"))
