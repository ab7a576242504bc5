"""The measured table: every method on Dolly, on eight given clients of equal and of unlike rank, over several seeds.

    python benchmarks/table.py               # both settings, three seeds; goes on where an earlier call stopped
    python benchmarks/table.py --quick       # the same in small: fewer examples, steps, rounds and seeds
    python benchmarks/table.py --rates       # the sweep for learning rates, on validation examples, with its own seed

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
from florist.federation.history import RunDirectory
from florist.files.outputs import replace_file

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "examples" / "dolly" / "causal-lm.toml"

GRID = (1e-3, 3e-3, 1e-2)
SWEEP = ("data.validation_fraction=0.04",)
SWEEP_SEED = 3
"""The seed of the sweep, which is none of the table's."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the table: a method, and the settings in which it differs from the configuration.

    Attributes:
        name: its name.
        method: its aggregation method.
        settings: further keys.
        borrowed: another entry, whose learning rate it takes; by default it has its own.
    """

    name: str
    method: str
    settings: tuple[str, ...] = ()
    borrowed: str | None = None

    def variant(self, rate: float, suffix: str = "") -> str:
        """The entry as `florist compare --variant` takes it."""
        keys = (f"aggregation.method={self.method}", f"training.learning_rate={rate:g}", *self.settings)
        return f"{self.name}{suffix}: {', '.join(keys)}"


ENTRIES = (
    Entry("florist", "florist"),
    Entry("florist fresh", "florist", ("federation.local_init=fresh",)),  # as published
    Entry("florist warm", "florist", ("federation.local_init=warm",)),
    Entry("florist 0.99", "florist", ("aggregation.tau=0.99",), borrowed="florist"),
    Entry("flora", "flora", ("federation.local_init=fresh",)),  # as published
    Entry("fedit", "fedit"),
    Entry("ffa", "ffa"),
    Entry("flexlora", "flexlora"),
    Entry("fedex", "fedex"),
    Entry("full", "full"),
)


@dataclass(frozen=True, slots=True)
class Federation:
    """One of the two comparisons.

    Attributes:
        ranks: the ranks of the clients, as the configuration takes them.
        rates: the learning rate of every entry, the best of `GRID` by `--rates`.
    """

    ranks: str
    rates: Mapping[str, float]

    def rate(self, entry: Entry) -> float:
        """The learning rate of an entry."""
        return self.rates[entry.borrowed or entry.name]


FEDERATIONS: Mapping[str, Federation] = {
    "homogeneous": Federation(
        "16",
        {
            "florist": 1e-2,
            "florist fresh": 1e-2,
            "florist warm": 3e-3,
            "flora": 1e-2,
            "fedit": 3e-3,
            "ffa": 1e-2,
            "flexlora": 3e-3,
            "fedex": 3e-3,
            "full": 3e-3,
        },
    ),
    "heterogeneous": Federation(
        "[64,32,16,16,8,8,4,4]",
        {
            "florist": 3e-3,
            "florist fresh": 3e-3,
            "florist warm": 3e-3,
            "flora": 3e-3,
            "fedit": 1e-2,
            "ffa": 3e-3,
            "flexlora": 3e-3,
            "fedex": 3e-3,
            "full": 3e-3,
        },
    ),
}


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run: seeds, steps of the base model, and settings for all entries."""

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
    """Make the base model, unless it is there."""
    if not out.exists():
        script = ROOT / "examples" / "dolly" / "make_model.py"
        subprocess.run([sys.executable, script, "--output", out, "--steps", str(steps)], check=True)


def compare(
    out: Path, common: Sequence[str], variants: Sequence[str], seeds: str, jobs: int, *, config: Path = CONFIG
) -> dict[str, Any]:
    """Begin one comparison, or go on with it, and return its JSON document.

    Raises:
        SystemExit: `florist compare` could not run.
    """
    settings = [f"--set={setting}" for setting in common]
    options = [f"--variant={variant}" for variant in variants]
    begin = [config, *settings, "--methods", ENTRIES[0].method, *options, "--seeds", seeds, "--out", out]
    arguments = ["--resume", out] if out.exists() else begin
    command = [sys.executable, "-m", "florist.cli", "compare", *map(str, arguments), "--jobs", str(jobs), "--json"]
    # Its tables are printed anew, as markdown; what it says while it runs is on stderr.
    result = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if not result.stdout:
        raise SystemExit(result.returncode)
    return json.loads(result.stdout)


def machine() -> dict[str, Any]:
    """The machine that the numbers come from."""
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
        names = [name for name in tensors.keys() if re.search(r"(_proj|query|value)\.weight$", name)]  # noqa: SIM118  # safe_open is no mapping
        adapted = [tensors.get_slice(name).get_shape() for name in names]
    unlike = dict.fromkeys(map(tuple, adapted))
    return ", ".join(f"{sum(tuple(shape) == each for shape in adapted)} of {each[0]} x {each[1]}" for each in unlike)


def description(facts: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """Say what was run where, for the head of a table."""
    config = read_config(Path(document["comparison"], "base.toml"))
    run = RunDirectory.open(Path(document["cells"][0]["run"]))
    weights = Path(config.model.name_or_path, "model.safetensors")
    training, data = config.training, config.data
    steps = f"{training.epochs} epochs" if training.steps is None else f"{training.steps} steps"
    return (
        f"{facts['processor']}, {facts['cpus']} CPUs, load average {facts['load_average']:.1f} at the start; "
        f"Python {facts['python']}, torch {facts['torch']}, {run.facts.threads} thread a run, {config.model.dtype}.\n"
        f"Base model {hashlib.sha256(weights.read_bytes()).hexdigest()[:12]}, loss {run.facts.initial['loss']:.3f}; "
        f"projections: {shapes(weights)}.\n"
        f"{config.federation.rounds} rounds, {len(run.records()[0].clients)} clients in the first, {steps} of batch "
        f"{training.batch_size}, {data.max_length} tokens, rows {data.rows}."
    )


def markdown(lines: Sequence[Mapping[str, Any]], rates: Mapping[str, float]) -> Iterator[str]:
    """The table of one comparison, line by line."""
    yield "| | rate | loss | against florist | | rank | efficiency | KB down | MB down | MB up |"
    yield "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|"
    for line in lines:
        head, loss = f"| {line['name']} | {rates[line['name']]:g} |", line["metrics"].get("loss")
        if loss is None:
            yield f"{head} failed | | | | | | | |"
            continue
        rank = f"{line['total_rank']:.0f} | {line['efficiency']:.1e}" if line["total_rank"] else " | "
        against = interval(loss["difference"], "+.3f") if loss["difference"] else ""
        down, up = line["download_bytes"] / 1e6, line["upload_bytes"] / 1e6
        yield (
            f"{head} {interval(loss, '.3f')} | {against} | {loss['verdict'] or ''} | {rank} | "
            f"{line['client_download_bytes'] / 1e3:.0f} | {down:.2f} | {up:.2f} |"
        )


def interval(found: Mapping[str, Any], form: str) -> str:
    """A mean, and half of its 95% interval if there is one."""
    spread = f" ± {(found['high'] - found['low']) / 2:.3f}" if found["high"] is not None else ""
    return f"{found['mean']:{form}}{spread}"


def sweep(out: Path, common: Sequence[str], jobs: int) -> None:
    """Print the validation loss of every entry at every learning rate of the grid."""
    own = [entry for entry in ENTRIES if entry.borrowed is None]
    # The entry that --methods florist gives is the first variant once more, at the rate of the example.
    variants = [entry.variant(rate, f" {rate:g}") for entry in own for rate in GRID]
    for name, federation in FEDERATIONS.items():
        settings = [*common, *SWEEP, f"lora.ranks={federation.ranks}"]
        document = compare(out / f"rates-{name}", settings, variants, f"{SWEEP_SEED},", jobs)
        losses = {line["name"]: line["validation"].get("loss") for line in document["rows"]}
        print(f"\n| {name} |" + "".join(f" {rate:g} |" for rate in GRID))
        print("|---|" + "---:|" * len(GRID))
        for entry in own:
            found = [losses[f"{entry.name} {rate:g}"] for rate in GRID]
            print(f"| {entry.name} |" + "".join(f" {loss['mean']:.3f} |" if loss else " failed |" for loss in found))


def play(out: Path, name: str, common: Sequence[str], seeds: str, jobs: int) -> dict[str, Any]:
    """Play one of the two comparisons."""
    first, *others = ENTRIES
    federation = FEDERATIONS[name]
    own = f"training.learning_rate={federation.rate(first):g}"  # for the entry that --methods florist gives
    variants = [entry.variant(federation.rate(entry)) for entry in others]
    return compare(out / name, [*common, own, f"lora.ranks={federation.ranks}"], variants, seeds, jobs)


def table(out: Path, common: Sequence[str], size: Size, jobs: int) -> bool:
    """Run both comparisons, print and write the tables.

    Returns:
        Whether every run went well.
    """
    started, facts = time.perf_counter(), machine()
    documents = {name: play(out, name, common, size.seeds, jobs) for name in FEDERATIONS}
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    facts |= {"seconds": time.perf_counter() - started, "core_seconds": used.ru_utime + used.ru_stime}
    lines = [description(facts, next(iter(documents.values())))]
    for name, document in documents.items():
        federation = FEDERATIONS[name]
        lines += ["", f"Ranks {name}, {federation.ranks}; loss on the {document['metric_source']}:", ""]
        lines += markdown(document["rows"], {entry.name: federation.rate(entry) for entry in ENTRIES})
    lines += ["", f"This call: {facts['seconds']:.0f} s, {facts['core_seconds']:.0f} s of CPU, {jobs} runs at once."]
    text = "\n".join(lines)
    print(text)
    replace_file(out / "table.md", text + "\n")
    replace_file(out / "table.json", json.dumps({"machine": facts, **documents}, indent=2) + "\n")
    return not any(line["failures"] for document in documents.values() for line in document["rows"])


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
    common = [
        f"model.name_or_path={(out / 'model').resolve()}",
        "training.threads=1",
        "communication.preset=plain",  # the methods themselves; benchmarks/communication.py measures what travels
        *size.settings,
        *args.set,
    ]
    if args.data is not None:
        common.append(f"data.path={args.data.resolve()}")
    if args.rates:
        sweep(out, common, args.jobs)
    elif not table(out, common, size, args.jobs):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
