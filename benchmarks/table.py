"""The measured table: every method on Dolly, on eight given clients of equal and of unlike rank, over several seeds.

    python benchmarks/table.py               # both settings, three seeds; goes on where an earlier call stopped
    python benchmarks/table.py --quick       # the same in small: fewer rows, steps, rounds and seeds
    python benchmarks/table.py --rates       # the sweep for learning rates, on validation records and its own seed

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
from florist.history import RunDirectory
from florist.outputs import replace_file

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "examples" / "dolly" / "causal-lm.toml"

RANKS: Mapping[str, str] = {"homogeneous": "16", "heterogeneous": "[64,32,16,16,8,8,4,4]"}

LOW, HIGH = (1e-3, 3e-3, 1e-2), (3e-3, 1e-2, 3e-2)
SWEEP = ("data.validation_fraction=0.04", f"lora.ranks={RANKS['homogeneous']}")
SWEEP_SEED = 3
"""None of the table's."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table: a method, and what is unlike the configuration.

    Attributes:
        name: of the row.
        method: its aggregation method.
        rate: its learning rate, the best of those tried by `--rates`.
        tried: learning rates; none where the rate is another entry's.
        settings: further keys.
    """

    name: str
    method: str
    rate: float
    tried: tuple[float, ...]
    settings: tuple[str, ...] = ()

    def variant(self, rate: float, suffix: str = "") -> str:
        """As `florist compare --variant` takes it."""
        keys = (f"aggregation.method={self.method}", f"training.learning_rate={rate:g}", *self.settings)
        return f"{self.name}{suffix}: {', '.join(keys)}"


FLORIST = Entry("florist", "florist", 1e-2, HIGH)
OTHERS = (
    Entry("florist fresh", "florist", 1e-2, HIGH, ("federation.local_init=fresh",)),  # as published
    Entry("florist warm", "florist", 3e-3, LOW, ("federation.local_init=warm",)),
    Entry("florist 0.99", "florist", FLORIST.rate, (), ("aggregation.tau=0.99",)),
    Entry("flora", "flora", 1e-2, HIGH, ("federation.local_init=fresh",)),  # as published
    Entry("fedit", "fedit", 3e-3, LOW),
    Entry("ffa", "ffa", 1e-2, HIGH),
    Entry("flexlora", "flexlora", 3e-3, LOW),
    Entry("fedex", "fedex", 3e-3, LOW),
    Entry("full", "full", 3e-3, LOW),
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
    rows = [f"--variant={variant}" for variant in variants]
    begin = [CONFIG, *settings, "--methods", FLORIST.method, *rows, "--seeds", seeds, "--out", out]
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


def shapes(weights: Path) -> str:
    """The shapes of the adapted modules, each with how often it occurs."""
    with safe_open(weights, "pt") as tensors:
        adapted = [tensors.get_slice(name).get_shape() for name in tensors.keys() if "_proj" in name]  # noqa: SIM118  # safe_open is no mapping
    unlike = dict.fromkeys(map(tuple, adapted))
    return ", ".join(f"{sum(tuple(shape) == each for shape in adapted)} of {each[0]} x {each[1]}" for each in unlike)


def description(facts: Mapping[str, Any], out: Path, documents: Mapping[str, Mapping[str, Any]]) -> str:
    """What was run where, for the head of the tables."""
    document = next(iter(documents.values()))
    config = read_config(Path(document["comparison"], "base.toml"))
    run = RunDirectory.open(Path(document["cells"][0]["run"]))
    weights = out / "model" / "model.safetensors"
    rates = ", ".join(f"{entry.name} {entry.rate:g}" for entry in (FLORIST, *OTHERS))
    training, data = config.training, config.data
    return (
        f"{facts['processor']}, {facts['cpus']} CPUs, load average {facts['load_average']:.1f} at the start; "
        f"Python {facts['python']}, torch {facts['torch']}, {run.facts.threads} thread a run, {config.model.dtype}.\n"
        f"Base model {hashlib.sha256(weights.read_bytes()).hexdigest()[:12]}, loss {run.facts.initial['loss']:.3f}; "
        f"adapted: {shapes(weights)}.\n"
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


def swept(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The validation loss of every method and rate; a run that diverged has none."""
    losses = {row["name"]: row["validation"].get("loss") for row in rows}
    for entry in (FLORIST, *OTHERS):
        found = {rate: losses[f"{entry.name} {rate:g}"] for rate in entry.tried}
        yield f"{entry.name}: " + ", ".join(
            f"{rate:g} {loss['mean']:.3f}" if loss else f"{rate:g} diverged" for rate, loss in found.items()
        )


def table(out: Path, common: Sequence[str], size: Size, jobs: int) -> bool:
    """Run both comparisons, print and write the tables.

    Returns:
        Whether every run went well.
    """
    started, facts = time.perf_counter(), machine()
    others = [entry.variant(entry.rate) for entry in OTHERS]
    own = f"training.learning_rate={FLORIST.rate:g}"  # of the row that --methods florist gives
    documents = {
        name: compare(out / name, [*common, own, f"lora.ranks={ranks}"], others, size.seeds, jobs)
        for name, ranks in RANKS.items()
    }
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    facts |= {"seconds": time.perf_counter() - started, "core_seconds": used.ru_utime + used.ru_stime}
    lines = [description(facts, out, documents)]
    for name, document in documents.items():
        lines += ["", f"Ranks {name}, {RANKS[name]}; loss on the {document['metric_source']}:", ""]
        lines += markdown(document["rows"])
    lines += ["", f"This call: {facts['seconds']:.0f} s, {facts['core_seconds']:.0f} s of CPU, {jobs} runs at once."]
    text = "\n".join(lines)
    print(text)
    replace_file(out / "table.md", text + "\n")
    replace_file(out / "table.json", json.dumps({"machine": facts, **documents}, indent=2) + "\n")
    return not any(row["failures"] for document in documents.values() for row in document["rows"])


def main() -> None:
    """Make the model, then the table or the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="directory; by default runs/table, or runs/table-quick")
    parser.add_argument("--data", type=Path, help="folder of the Dolly clients; by default that of the example")
    parser.add_argument("--set", action="append", default=[], help="override a key for all runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rates", action="store_true")
    args = parser.parse_args()
    size = QUICK if args.quick else WHOLE
    out = args.out or Path("runs", "table-quick" if args.quick else "table")
    out.mkdir(parents=True, exist_ok=True)
    make_model(out / "model", size.pretraining_steps)
    common = [f"model.name_or_path={(out / 'model').resolve()}", "training.threads=1", *size.settings, *args.set]
    if args.data is not None:
        common.append(f"data.path={args.data.resolve()}")
    if args.rates:
        variants = [entry.variant(rate, f" {rate:g}") for entry in (FLORIST, *OTHERS) for rate in entry.tried]
        document = compare(out / "rates", [*common, *SWEEP], variants, f"{SWEEP_SEED},", args.jobs)
        print("\n".join(swept(document["rows"])))
    elif not table(out, common, size, args.jobs):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
