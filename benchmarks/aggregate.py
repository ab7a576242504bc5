"""`florist aggregate` as a user runs it, files to files: time against its floor, start-up, and memory for many clients.

    python benchmarks/aggregate.py              # minutes
    python benchmarks/aggregate.py --layers 2   # quick

1. Time: adapters of LLaMA-7B's attention shape (4096 x 4096), ranks 64,32,16,16,8,8,4,4, tau 0.9, aggregated and
   written, against the floor: reading the same files and the matrix products that no Gram route avoids. CPU seconds.
2. Start-up: `florist --help` (CPU seconds) and two tiny adapters (wall seconds), as processes.
3. Memory: 8, 80 and 800 clients of rank 8, as processes. Peak resident memory above that of a process that only
   imports torch.

Factors are random with a decaying scale; what is stored is float32.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from florist.cli.memory import keep_freed_memory
from florist.one_shot import aggregate
from florist.ranks import EnergyThreshold

UNLIKE = (64, 32, 16, 16, 8, 8, 4, 4)
FLORIST = Path(sys.executable).with_name("florist")
PEAK = """
import re, sys
import torch
torch.set_num_threads(1)
if sys.argv[1:]:
    from florist.cli import main
    sys.argv = ["florist", *sys.argv[1:]]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
"""


def save_adapter(folder: Path, modules: int, size: int, rank: int, seed: int) -> Path:
    """A PEFT adapter of random factors whose components fall in scale."""
    folder.mkdir(parents=True)
    draw = torch.Generator().manual_seed(seed)
    fall = 0.8 ** torch.arange(rank)
    names = [f"model.layers.{number}.self_attn.q_proj" for number in range(modules)]
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(size, rank, generator=draw) * fall
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, size, generator=draw)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def floor(adapters: Sequence[Path], ranks: Sequence[int]) -> None:
    """Read every tensor, and per module two Gram matrices and two thin products with the rank that was kept."""
    files = [safe_open(adapter / "adapter_model.safetensors", framework="pt") for adapter in adapters]
    names = sorted(name for name in files[0].keys() if "lora_A" in name)  # noqa: SIM118  # safe_open is no mapping
    for name, p in zip(names, ranks, strict=True):
        B = torch.cat([file.get_tensor(name.replace("lora_A", "lora_B")) for file in files], dim=1)
        A = torch.cat([file.get_tensor(name) for file in files])
        G_B, G_A = B.T @ B, A @ A.T
        _ = B @ G_B[:, :p]
        _ = G_A[:p] @ A


def least_cpu(call: Callable[[], object], repeats: int = 3) -> float:
    """Least CPU time of some calls, all threads together, in seconds."""
    seconds: list[float] = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds)


def files_to_files(folder: Path, layers: int) -> None:
    """Part 1."""
    adapters = [save_adapter(folder / f"c{k}", layers, 4096, rank, k) for k, rank in enumerate(UNLIKE)]
    outputs = iter(range(1000))

    def ours() -> list[int]:
        merged = aggregate(adapters, rank_rule=EnergyThreshold(0.9))
        merged.write(folder / f"out{next(outputs)}")
        return [module.rank for module in merged.certificate.modules.values()]

    ranks = ours()
    print(f"\n{layers} modules of 4096 x 4096, R = {sum(UNLIKE)}, kept ranks {min(ranks)} to {max(ranks)}")
    for threads in (1, os.cpu_count() or 1):
        torch.set_num_threads(threads)
        time_ours, time_floor = least_cpu(ours), least_cpu(lambda: floor(adapters, ranks))
        print(
            f"{threads} thread(s): aggregate and write {time_ours:.2f} s, floor {time_floor:.2f} s: "
            f"{time_ours / time_floor:.2f} times"
        )


def start_up(folder: Path) -> None:
    """Part 2."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([FLORIST, "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    tiny = [save_adapter(folder / f"t{k}", 2, 64, 4, k) for k in range(2)]
    start = time.perf_counter()
    subprocess.run([FLORIST, "aggregate", *tiny, "-o", folder / "tiny"], check=True, capture_output=True)
    print(f"\nflorist --help: {cpu:.2f} s of CPU; two tiny adapters: {time.perf_counter() - start:.2f} s")


def memory(folder: Path, size: int, modules: int) -> None:
    """Part 3."""
    adapters = [save_adapter(folder / f"m{k}", modules, size, 8, k) for k in range(800)]
    idle = peak_kib([])
    print(f"\n{modules} modules of {size} x {size}, clients of rank 8; MB above a process that imports torch")
    for count in (8, 80, 800):
        out = folder / f"many{count}"
        peak = peak_kib(["aggregate", *map(str, adapters[:count]), "-o", str(out)])
        written = (out / "adapter_model.safetensors").stat().st_size
        inputs = sum((adapter / "adapter_model.safetensors").stat().st_size for adapter in adapters[:count])
        print(
            f"{count:4d} clients, {inputs / 1e6:7.1f} MB in, {written / 1e6:6.1f} MB out, module "
            f"{4 * size * size / 1e6:.1f} MB dense: peak {(peak - idle) / 1e3:7.1f}"
        )


def peak_kib(arguments: Sequence[str]) -> int:
    """Peak resident KiB of a process."""
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], check=True, capture_output=True, text=True)
    return int(done.stderr.strip().splitlines()[-1])


def main() -> None:
    """Print all three parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=64)
    parser.add_argument("--modules", type=int, default=8, help="of an adapter in the memory part")
    parser.add_argument("--size", type=int, default=512, help="of a module in the memory part")
    args = parser.parse_args()
    keep_freed_memory()  # as the command line does
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}")
    print(f"torch {torch.__version__}, float32 factors")
    with tempfile.TemporaryDirectory() as scratch:
        start_up(Path(scratch))
        memory(Path(scratch), args.size, args.modules)
        files_to_files(Path(scratch), args.layers)


if __name__ == "__main__":
    main()
