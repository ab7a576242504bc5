"""The measured table: every method on Dolly, on eight given clients of equal and of unlike rank, over several seeds.

    python benchmarks/table.py               # both settings, three seeds; goes on where an earlier call stopped
    python benchmarks/table.py --quick       # the same in small: fewer rows, steps, rounds and seeds
    python benchmarks/table.py --rates       # the sweep behind RATES, on validation records and a seed of its own

It makes the base model, unless it is there, and runs `florist compare` on `examples/dolly/causal-lm.toml`. `--data DIR`
names the folder of `client_0.json` to `client_7.json` and `test.json`. What it prints is also in runs/table/table.md,
with all numbers in table.json; the runs themselves are in homogeneous/cells and heterogeneous/cells.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from florist.config import read_config
from florist.outputs import replace_file

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "examples" / "dolly" / "causal-lm.toml"

RANKS: Mapping[str, str] = {"homogeneous": "16", "heterogeneous": "[64,32,16,16,8,8,4,4]"}

RATES: Mapping[str, float] = {
    "florist": 3e-3,
    "flora": 3e-3,
    "fedit": 3e-3,
    "flexlora": 3e-3,
    "fedex": 3e-3,
    "ffa": 3e-3,
    "full": 3e-3,
}
"""Learning rate of each method: the best of `RATE_GRID` by `--rates`."""

RATE_GRID = (1e-3, 3e-3, 1e-2)
FURTHER_RATES: Mapping[str, float] = {"ffa": 3e-2, "full": 3e-4}
"""One step further where a method was best at the end of the grid."""
RATE_SEED = 3


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table: a method, and what is unlike the configuration."""

    name: str
    method: str
    settings: tuple[str, ...] = ()

    def variant(self, rate: float, suffix: str = "") -> str:
        """As `florist compare --variant` takes it."""
        keys = (f"aggregation.method={self.method}", f"training.learning_rate={rate}", *self.settings)
        return f"--variant={self.name}{suffix}: {', '.join(keys)}"


METHODS = (
    Entry("florist", "florist"),
    Entry("flora", "flora", ("federation.local_init=fresh",)),  # as published
    Entry("fedit", "fedit"),
    Entry("ffa", "ffa"),
    Entry("flexlora", "flexlora"),
    Entry("fedex", "fedex"),
    Entry("full", "full"),
)
VARIANTS = (
    Entry("florist fresh", "florist", ("federation.local_init=fresh",)),  # as published
    Entry("florist warm", "florist", ("federation.local_init=warm",)),
    Entry("florist 0.99", "florist", ("aggregation.tau=0.99",)),
)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run."""

    seeds: str
    pretraining_steps: int
    settings: tuple[str, ...] = ()


WHOLE = Size(seeds="3", pretraining_steps=600)
QUICK = Size(
    seeds="2",
    pretraining_steps=150,
    settings=("data.rows=::24", "training.steps=4", "federation.rounds=2", "evaluation.every=2"),
)


def make_model(out: Path, steps: int) -> None:
    """The base model, where it is not there yet."""
    if not out.exists():
        script = ROOT / "examples" / "dolly" / "make_model.py"
        subprocess.run([sys.executable, script, "--output", out, "--steps", str(steps)], check=True)


def compare(out: Path, common: Sequence[str], variants: Sequence[str], seeds: str, jobs: int) -> dict[str, Any]:
    """The JSON document of one comparison, begun or gone on with.

    Raises:
        SystemExit: `florist compare` could not run.
    """
    settings = [f"--set={setting}" for setting in common]
    begin = [CONFIG, *settings, "--methods", METHODS[0].method, *variants, "--seeds", seeds, "--out", out]
    arguments = ["--resume", out] if out.exists() else begin
    command = [sys.executable, "-m", "florist.cli", "compare", *map(str, arguments), "--jobs", str(jobs), "--json"]
    # Its tables are printed anew, as markdown; what it says while it runs is on stderr.
    result = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if not result.stdout:
        raise SystemExit(result.returncode)
    return json.loads(result.stdout)


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    names = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", names.read_text()) if names.exists() else None
    return {
        "processor": found[1] if found else platform.processor(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def shapes(model: Path) -> str:
    """The shapes of the adapted modules, each with how often it occurs."""
    with safe_open(model / "model.safetensors", "pt") as tensors:
        adapted = [tensors.get_slice(name).get_shape() for name in tensors.keys() if "_proj" in name]  # noqa: SIM118  # safe_open is no mapping
    unlike = dict.fromkeys(map(tuple, adapted))
    return ", ".join(f"{sum(tuple(shape) == each for shape in adapted)} of {each[0]} x {each[1]}" for each in unlike)


def description(facts: Mapping[str, Any], model: Path, documents: Mapping[str, Mapping[str, Any]]) -> str:
    """What was run where, for the head of the tables."""
    config = read_config(next(iter(documents.values()))["comparison"] / Path("base.toml"))
    digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    rates = ", ".join(f"{method} {rate:g}" for method, rate in RATES.items())
    training, data = config.training, config.data
    return (
        f"{facts['processor']}, {facts['cpus']} CPUs, load average {facts['load_average']:.1f} at the start; "
        f"Python {facts['python']}, torch {facts['torch']}, 1 thread a run, {config.model.dtype}.\n"
        f"Adapted modules: {shapes(model)}; base model {digest[:12]}.\n"
        f"{config.federation.rounds} rounds, 8 clients, {training.steps} steps of batch {training.batch_size}, "
        f"{data.max_length} tokens, rows {data.rows}. Learning rates: {rates}."
    )


def markdown(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The table of one comparison."""
    yield "| | loss | against florist | | rank | 1/rank | KB down | MB down | MB up |"
    yield "|---|---:|---:|---|---:|---:|---:|---:|---:|"
    for row in rows:
        loss = row["metrics"].get("loss")
        if loss is None:
            yield f"| {row['name']} | failed | | | | | | | |"
            continue
        rank = f"{row['total_rank']:.0f} | {row['efficiency']:.1e}" if row["total_rank"] else " | "
        against = interval(loss["difference"], "+.3f") if loss["difference"] else ""
        down, up = row["download_bytes"] / 1e6, row["upload_bytes"] / 1e6
        yield (
            f"| {row['name']} | {interval(loss, '.3f')} | {against} | {loss['verdict'] or ''} | {rank} | "
            f"{row['client_download_bytes'] / 1e3:.0f} | {down:.2f} | {up:.2f} |"
        )


def interval(found: Mapping[str, Any], form: str) -> str:
    """A mean, and half of its 95% interval where there is one."""
    spread = f" ± {(found['high'] - found['low']) / 2:.3f}" if found["high"] is not None else ""
    return f"{found['mean']:{form}}{spread}"


def best_rates(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The validation loss of every method and rate; a run that diverged has none."""
    yield "| | " + " | ".join(f"{rate:g}" for rate in (3e-4, *RATE_GRID, 3e-2)) + " |"
    yield "|---|" + "---:|" * (len(RATE_GRID) + 2)
    losses = {row["name"]: row["validation"].get("loss") for row in rows}
    for entry in METHODS:
        found = [losses.get(f"{entry.name} {rate:g}") for rate in (3e-4, *RATE_GRID, 3e-2)]
        yield f"| {entry.name} | " + " | ".join(f"{loss['mean']:.3f}" if loss else "" for loss in found) + " |"


def main() -> None:
    """Make the model, run both comparisons, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="directory; by default runs/table, or runs/table-quick")
    parser.add_argument("--data", type=Path, help="folder of the Dolly clients; by default that of the example")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rates", action="store_true")
    args = parser.parse_args()
    size, started, facts = QUICK if args.quick else WHOLE, time.perf_counter(), machine()
    out = args.out or Path("runs", "table-quick" if args.quick else "table")
    out.mkdir(parents=True, exist_ok=True)
    model = out / "model"
    make_model(model, size.pretraining_steps)
    common = [f"model.name_or_path={model.resolve()}", "training.threads=1", *size.settings]
    if args.data is not None:
        common.append(f"data.path={args.data.resolve()}")
    if args.rates:
        swept = [
            entry.variant(rate, f" {rate:g}")
            for entry in METHODS
            for rate in (*RATE_GRID, *([FURTHER_RATES[entry.name]] if entry.name in FURTHER_RATES else []))
        ]
        options = [*common, f"lora.ranks={RANKS['homogeneous']}"]
        document = compare(out / "rates", options, swept, f"{RATE_SEED},", args.jobs)
        print("\n".join(best_rates(document["rows"])))
        return
    # The configuration's own entry is florist at its rate.
    rest = [entry.variant(RATES[entry.method]) for entry in (*METHODS[1:], *VARIANTS)]
    common.append(f"training.learning_rate={RATES['florist']}")
    documents = {
        name: compare(out / name, [*common, f"lora.ranks={ranks}"], rest, size.seeds, args.jobs)
        for name, ranks in RANKS.items()
    }
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    facts |= {"seconds": time.perf_counter() - started, "core_seconds": used.ru_utime + used.ru_stime}
    lines = [description(facts, model, documents)]
    for name, document in documents.items():
        lines += ["", f"Ranks {name}, {RANKS[name]}; loss on the {document['metric_source']}:", ""]
        lines += markdown(document["rows"])
    lines += [
        "",
        f"This call: {facts['seconds']:.0f} s, {facts['core_seconds']:.0f} s of CPU, {args.jobs} runs at once.",
    ]
    text = "\n".join(lines)
    print(text)
    replace_file(out / "table.md", text + "\n")
    replace_file(out / "table.json", json.dumps({"machine": facts, **documents}, indent=2) + "\n")
    if any(row["failures"] for document in documents.values() for row in document["rows"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
