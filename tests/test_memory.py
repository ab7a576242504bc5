"""Peak memory of whole processes, files to files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

MODULES, OUT, IN, RANK = 4, 256, 512, 8

PEAK = """
import re, sys
import torch
torch.set_num_threads(1)
from florist.cli import main
sys.argv = ["florist", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
"""


def save(folder: Path, seed: int) -> Path:
    folder.mkdir()
    draw = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(MODULES):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_B.weight"] = torch.randn(OUT, RANK, generator=draw)
        tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, IN, generator=draw)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def peak_bytes(adapters: list[Path], out: Path) -> int:
    command = [sys.executable, "-c", PEAK, "aggregate", *map(str, adapters), "-o", str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return 1024 * int(done.stderr.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_clients(tmp_path: Path) -> None:
    adapters = [save(tmp_path / f"c{seed}", seed) for seed in range(600)]
    few = peak_bytes(adapters[:8], tmp_path / "few")
    many = peak_bytes(adapters, tmp_path / "many")
    inputs = 600 * (adapters[0] / "adapter_model.safetensors").stat().st_size
    assert inputs > 55e6
    # The dense module, its Gram matrix, a batch of clients and a full-rank output are below 20 MB, and 600 open
    # adapters are another 6; to hold or map the inputs would take all of theirs.
    assert many - few < 30e6
