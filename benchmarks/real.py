"""The measured table on a real language model: SmolLM2-135M-Instruct on Dolly by every method.

    python benchmarks/real.py --model MODEL --data DIR              # MODEL: what examples/smollm2/make_model.py makes
    python benchmarks/real.py --model MODEL --data DIR --only unlike --seeds 0,
    python benchmarks/real.py --model MODEL --data DIR --rates            # learning rates, on validation examples
    python benchmarks/real.py --model MODEL --data DIR --mmlu FILE        # questions for the adapters that are there

It runs `florist compare` on `examples/smollm2`, one run after the other, seed by seed: a call that is stopped goes on
where it was, in the middle of a run too. 8% of the clients' examples are set apart, on which rates are chosen; the loss
is that of the final adapter on the test examples. FILE has questions of multiple choice; the model is asked for the
letter, of the first adapter of every line and of the model without an adapter. Outcomes of questions are kept in
OUT/mmlu.jsonl. What is printed is also in OUT/real.md, with all numbers in real.json.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.table import ROOT, Entry, compare, description, interval, machine
from florist.files.outputs import replace_file

FOLDER = ROOT / "examples" / "smollm2"
SWEEP_SEED = 3
"""The seed of the search for rates, which is none of the table's."""
LORA = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
GRIDS: Mapping[str, tuple[float, ...]] = {
    "florist as published": LORA,
    "fedit": LORA,
    "ffa": LORA,
    "linear": LORA,
    "full": (1e-4, 3e-4, 1e-3, 3e-3),
}
"""The rates that are tried, by line. In the first round the other lines train as one of these does."""
BORROWED: Mapping[str, str] = {
    "florist": "florist as published",
    "florist warm": "florist as published",
    "florist plain": "florist as published",
    "flora": "florist as published",
    "flexlora": "fedit",
    "fedex": "fedit",
}
"""The line whose rate another takes."""
RATES: Mapping[str, float] = {
    "florist as published": 4e-3,
    "fedit": 8e-3,
    "ffa": 8e-3,
    "linear": 4e-3,
    "full": 1e-3,
}
"""The rate of every line. docs/results.md says which of the grid were tried."""
PAPER = ("communication.preset=paper",)
PLAIN = ("communication.preset=plain",)
WARM = "federation.local_init=warm"

UNLIKE = (
    Entry("florist", "florist"),  # the default: 4 bits, cuts and feedback
    Entry("florist warm", "florist", (WARM,)),
    Entry("florist plain", "florist", PLAIN),
    Entry("florist as published", "florist", PAPER),
    Entry("flora", "flora", PAPER),
    Entry("fedit", "fedit", PLAIN),
    Entry("ffa", "ffa", PLAIN),
    Entry("flexlora", "flexlora", PLAIN),
    Entry("fedex", "fedex", PLAIN),
    Entry("linear", "linear", ("communication.preset=plain", "aggregation.tau=0.9")),
    Entry("full", "full", (*PLAIN, "model.dtype=float32")),  # in bfloat16 a weight would lose what a step adds to it
)
EQUAL = tuple(entry for entry in UNLIKE if entry.name not in {"florist warm", "full"})  # full fine-tuning has no rank
SHORT = tuple(entry for entry in UNLIKE if entry.name in {"florist", "florist as published", "flora", "fedit"})


@dataclass(frozen=True, slots=True)
class Table:
    """One comparison.

    Attributes:
        title: its heading.
        config: the file in `examples/smollm2`.
        settings: what is unlike there.
        entries: the lines; the first is what the others are compared with.
    """

    title: str
    config: str
    settings: tuple[str, ...]
    entries: tuple[Entry, ...]


TABLES: Mapping[str, Table] = {
    "unlike": Table("Queries and values, ranks 64, 32, 16, 16, 8, 8, 4, 4", "attention.toml", (), UNLIKE),
    "equal": Table("Queries and values, every client with rank 16", "attention.toml", ("lora.ranks=16",), EQUAL),
    "all-linear": Table("All linear layers, ranks 64, 32, 16, 16, 8, 8, 4, 4", "all-linear.toml", (), SHORT),
}


def rate_of(entry: Entry) -> float:
    """The learning rate of a line."""
    return RATES[BORROWED.get(entry.name, entry.name)]


def play(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Begin the comparison of a table, or go on with it."""
    table = TABLES[name]
    first, *others = table.entries
    own = f"training.learning_rate={rate_of(first):g}"
    variants = [entry.variant(rate_of(entry)) for entry in others]
    settings = [*given(args), *table.settings, own]
    return compare(args.out / name, settings, variants, args.seeds, 1, config=FOLDER / table.config)


def sweep(name: str, args: argparse.Namespace) -> None:
    """Print the validation loss of every line that has a grid at each of its rates, after two rounds."""
    table = TABLES[name]
    own = [entry for entry in table.entries if entry.name in GRIDS]
    variants = [entry.variant(rate, f" {rate:g}") for entry in own for rate in GRIDS[entry.name]]
    keys = ("federation.rounds=2", "evaluation.every=2")
    settings, config = [*given(args), *table.settings, *keys], FOLDER / table.config
    found = compare(args.out / f"rates-{name}", settings, variants, f"{SWEEP_SEED},", 1, config=config)
    losses = {line["name"]: line["validation"].get("loss") for line in found["rows"]}
    for entry in own:
        for rate in GRIDS[entry.name]:
            loss = losses[f"{entry.name} {rate:g}"]
            print(f"{entry.name:22} {rate:8g} " + (f"{loss['mean']:.4f}" if loss else "failed"))


def given(args: argparse.Namespace) -> list[str]:
    """The keys that say where model and data are, and those that the call changes."""
    return [f"model.name_or_path={args.model.resolve()}", f"data.path={args.data.resolve()}", *args.set]


def asked(adapter: Path | None, config: Path, args: argparse.Namespace) -> float:
    """The fraction of questions that an adapter answers, or the base without one; the same is asked once."""
    settings = (
        *given(args),
        'evaluation.metrics=["multiple_choice"]',
        f"evaluation.multiple_choice={args.mmlu.resolve()}",
        r'evaluation.choice_prompt="{question}\n{options}\nAnswer:"',
        'evaluation.choice_answer=" {letter}"',
        "data.max_length=512",
    )
    key = {
        "adapter": None if adapter is None else str(adapter.relative_to(args.out)),
        "settings": settings,
        "questions": hashlib.sha256(args.mmlu.read_bytes()).hexdigest(),
    }
    kept, key_text = args.out / "mmlu.jsonl", json.dumps(key)
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    known = {json.dumps(line["asked"]): line["multiple_choice"] for line in lines}
    if key_text not in known:
        what = ["--base"] if adapter is None else [adapter]
        options = [*what, "--config", config, *(f"--set={setting}" for setting in settings), "--json"]
        command = [sys.executable, "-m", "florist.cli", "evaluate", *map(str, options)]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        (found,) = json.loads(result.stdout)["metrics"].values()
        known[key_text] = found["multiple_choice"]
        with kept.open("a") as target:
            target.write(json.dumps({"asked": key, "multiple_choice": known[key_text]}) + "\n")
    return known[key_text]


def questions(name: str, document: Mapping[str, Any], args: argparse.Namespace) -> dict[str, float]:
    """What the base and the first adapter of every line answer."""
    config = FOLDER / TABLES[name].config
    first = {cell["entry"]: Path(cell["run"], "adapter") for cell in reversed(document["cells"])}
    found = {"base": asked(None, config, args)}
    return found | {line: asked(first[line], config, args) for line in first if first[line].exists()}


def markdown(table: Table, document: Mapping[str, Any], answered: Mapping[str, float]) -> Iterator[str]:
    """One table, line by line."""
    first = table.entries[0].name
    yield f"| | rate | loss | against {first} | | MB down | MB up | rank | client s | server s | MMLU |"
    yield "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|"
    rates = {entry.name: rate_of(entry) for entry in table.entries}
    for line in document["rows"]:
        head, loss = f"| {line['name']} | {rates[line['name']]:g} |", line["metrics"].get("loss")
        if loss is None:
            yield f"{head} failed | | | | | | | | |"
            continue
        right, rank = answered.get(line["name"]), f"{line['total_rank']:.0f}" if line["total_rank"] else ""
        yield (
            f"{head} {compared(loss) if loss['count'] > 2 else seed_by_seed(line['name'], first, document['cells'])} | "
            f"{line['download_bytes'] / 1e6:.2f} | {line['upload_bytes'] / 1e6:.2f} | "
            f"{rank} | {line['client_seconds']:.0f} | {line['server_seconds']:.1f} | "
            f"{'' if right is None else f'{right:.3f}'} |"
        )


def compared(loss: Mapping[str, Any]) -> str:
    """The loss, what it is against the first line, and the verdict."""
    against = interval(loss["difference"], "+.3f") if loss["difference"] else ""
    return f"{interval(loss, '.3f')} | {against} | {loss['verdict'] or ''}"


def seed_by_seed(name: str, first: str, cells: Sequence[Mapping[str, Any]]) -> str:
    """The same for one or two seeds, of which no interval can be had: every number, and no verdict."""
    losses: dict[str, dict[int, float]] = {}
    for cell in cells:
        if "loss" in cell["metrics"]:
            losses.setdefault(cell["entry"], {})[cell["seed"]] = cell["metrics"]["loss"]
    base = {} if name == first else losses[first]
    against = [f"{loss - base[seed]:+.3f}" for seed, loss in losses[name].items() if seed in base]
    return f"{', '.join(f'{loss:.3f}' for loss in losses[name].values())} | {', '.join(against)} | "


def main() -> None:
    """Play what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=FOLDER / "model")
    parser.add_argument("--data", type=Path, required=True, help="folder of the Dolly clients")
    parser.add_argument("--out", type=Path, default=Path("runs", "real"))
    parser.add_argument("--only", action="append", choices=list(TABLES), help="one table; may be given several times")
    parser.add_argument("--seeds", default="2", help="as `florist compare` takes them")
    parser.add_argument("--mmlu", type=Path, help="a file of questions, as evaluation.multiple_choice takes it")
    parser.add_argument("--set", action="append", default=[], help="override a key for all runs")
    parser.add_argument("--rates", action="store_true", help="search for learning rates, on validation examples")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.out = args.out.resolve()
    names = args.only or list(TABLES)
    if args.rates:
        for name in names:
            sweep(name, args)
        return
    started, facts = time.perf_counter(), machine()
    documents = {name: play(name, args) for name in names}
    lines: list[str] = []
    for name, document in documents.items():
        answered = questions(name, document, args) if args.mmlu is not None else {}
        lines += [f"{TABLES[name].title}; loss on the {document['metric_source']}.", description(facts, document), ""]
        lines += [*markdown(TABLES[name], document, answered), ""]
        if answered:
            lines += [f"MMLU of the base: {answered['base']:.3f}.", ""]
    lines.append(f"This call: {time.perf_counter() - started:.0f} s.")
    text = "\n".join(lines)
    print(text)
    replace_file(args.out / "real.md", text + "\n")
    replace_file(args.out / "real.json", json.dumps({"machine": facts, **documents}, indent=2) + "\n")


if __name__ == "__main__":
    main()
