"""The measured tables of compression: what a codec, a cut and feedback cost and save, on Dolly, over five seeds.

    python benchmarks/communication.py --data DIR                # all tables; goes on where an earlier call stopped
    python benchmarks/communication.py --data DIR --only unlike  # one of them
    python benchmarks/communication.py --data DIR --quick        # the same in small

It makes the base model, unless it is there, and runs `florist compare` on `examples/dolly/causal-lm.toml`. 4% of the
clients' examples are set apart, on which settings may be chosen; the loss is that of the final adapter on the test
examples, with what the server still held back unless the line says otherwise. Four tables have another task: `strings`
has the eight of `starts.py`, `categories` and `converged` take the directory of an encoder (`--encoder`), and `chat`
that of a language model with a chat template (`--language-model`). Differences are paired by seed with the first line
of each table, `florist` at tau 0.9, which sends float32 and forgets what it cuts. What it prints is also in
runs/communication/communication.md, with all numbers in communication.json, and a figure in communication.svg, which
takes ``pip install matplotlib``.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.starts import prepare
from benchmarks.table import CONFIG, QUICK, ROOT, WHOLE, Entry, compare, description, interval, machine, make_model
from florist.files.outputs import replace_file

SPLIT = ("data.validation_fraction=0.04", "evaluation.every=100")


def compressed(bits: str, tau: float, upload_tau: float | None, feedback: str = "true") -> tuple[str, ...]:
    """The keys of a line that sends `bits` both ways."""
    cut = () if upload_tau is None else (f"communication.upload_tau={upload_tau}",)
    return (
        f"communication.download={bits}",
        f"communication.upload={bits}",
        f"communication.feedback={feedback}",
        f"aggregation.tau={tau}",
        *cut,
    )


def codec(bits: str) -> tuple[str, ...]:
    """The keys of a line that only packs what is sent."""
    return (f"communication.download={bits}", f"communication.upload={bits}")


@dataclass(frozen=True, slots=True)
class Table:
    """One comparison.

    Attributes:
        title: its heading.
        seeds: as `florist compare --seeds` takes them.
        settings: what all lines have in common.
        entries: the lines, with their learning rates; the first is what the others are compared with.
        task: what is learned, one of `TASKS`.
    """

    title: str
    seeds: str
    settings: tuple[str, ...]
    entries: tuple[tuple[Entry, float], ...]
    task: str = "dolly"


PLAIN = Entry("florist", "florist")
LABELS = {"florist": "plain 0.9"}
"""What a line is called here, where `florist compare` calls it by its method alone."""
WARM = "federation.local_init=warm"
UNLIKE = "lora.ranks=[64,32,16,16,8,8,4,4]"
SIXTEEN = (
    "lora.ranks=[64,64,32,32,16,16,16,16,8,8,8,8,4,4,4,4]",
    "data.partition=dirichlet",
    "data.partition_field=category",
    "federation.fraction=0.5",
    "federation.rounds=10",
)

COMPACT = Entry("int4 0.7 up 0.75", "florist", compressed("int4", 0.7, 0.75))
WARM_COMPACT = Entry("warm int4 0.7 up 0.75", "florist", (*compressed("int4", 0.7, 0.75), WARM))
BUDGETS = ("aggregation.budget=60kB", "communication.upload_budget=25kB", "communication.feedback=true", *codec("int4"))

TABLES: Mapping[str, Table] = {
    "unlike": Table(
        "Ranks 64, 32, 16, 16, 8, 8, 4, 4",
        "5",
        (UNLIKE,),
        (
            (PLAIN, 5e-3),
            (Entry("plain 0.99", "florist", ("aggregation.tau=0.99",)), 5e-3),
            (Entry("flora", "flora"), 5e-3),
            (Entry("int4 0.7 up 0.75", "florist", compressed("int4", 0.7, 0.75)), 5e-3),
            (Entry("int4 0.9 up 0.9", "florist", compressed("int4", 0.9, 0.9)), 5e-3),
            (Entry("warm int4 0.7 up 0.75", "florist", (*compressed("int4", 0.7, 0.75), WARM)), 5e-3),
            (Entry("no feedback int4 0.7 up 0.75", "florist", compressed("int4", 0.7, 0.75, "false")), 5e-3),
            (Entry("server int4 0.7 up 0.75", "florist", compressed("int4", 0.7, 0.75, "server")), 5e-3),
            (Entry("clients int4 0.7 up 0.75", "florist", compressed("int4", 0.7, 0.75, "clients")), 5e-3),
        ),
    ),
    "equal": Table(
        "Every client with rank 16",
        "3",
        ("lora.ranks=16",),
        (
            (PLAIN, 5e-3),
            (Entry("fedex", "fedex"), 5e-3),
            (COMPACT, 5e-3),
            (Entry("warm int4 0.7 up 0.75", "florist", (*compressed("int4", 0.7, 0.75), WARM)), 5e-3),
            (Entry("warm int4 0.9 up 0.9", "florist", (*compressed("int4", 0.9, 0.9), WARM)), 5e-3),
            (Entry("warm int8 0.95 up 0.95", "florist", (*compressed("int8", 0.95, 0.95), WARM)), 5e-3),
            (Entry("linear", "linear", ("aggregation.tau=0.9",)), 1e-2),
            (Entry("linear int4 0.7", "linear", compressed("int4", 0.7, None)), 1e-2),
        ),
    ),
    "sixteen": Table(
        "Sixteen clients, half of them in each of ten rounds",
        "3",
        SIXTEEN,
        (
            (PLAIN, 5e-3),
            (COMPACT, 5e-3),
            (WARM_COMPACT, 5e-3),
        ),
    ),
    "neighbours": Table(
        "Ranks 64, 32, 16, 16, 8, 8, 4, 4: neighbours, other codecs and a budget",
        "3",
        (UNLIKE,),
        (
            (PLAIN, 5e-3),
            (WARM_COMPACT, 5e-3),
            (Entry("float16 0.9", "florist", compressed("float16", 0.9, None)), 5e-3),
            (Entry("warm int8 0.7 up 0.75", "florist", (*compressed("int8", 0.7, 0.75), WARM)), 5e-3),
            (Entry("warm int4 60 kB up 25 kB", "florist", (*BUDGETS, WARM)), 5e-3),
            (Entry("raflora", "raflora"), 2e-3),
            (Entry("fedsvd", "fedsvd"), 3e-3),
            (Entry("raflora int4", "raflora", codec("int4")), 2e-3),
        ),
    ),
    "fedex": Table(
        "Every client with rank 16: towards FedEx-LoRA's loss",
        "3",
        ("lora.ranks=16",),
        (
            (PLAIN, 5e-3),
            (Entry("warm int4 0.99 up 0.99", "florist", (*compressed("int4", 0.99, 0.99), WARM)), 5e-3),
            (Entry("warm int8 0.99 up 0.99", "florist", (*compressed("int8", 0.99, 0.99), WARM)), 5e-3),
            (Entry("warm int4 0.97 up 0.97, rate 7e-3", "florist", (*compressed("int4", 0.97, 0.97), WARM)), 7e-3),
        ),
    ),
    "twenty": Table(
        "Ranks 64, 32, 16, 16, 8, 8, 4, 4, twenty rounds",
        "3",
        (UNLIKE, "federation.rounds=20"),
        ((PLAIN, 5e-3), (COMPACT, 5e-3), (WARM_COMPACT, 5e-3)),
    ),
    "strings": Table(
        "Eight string tasks, ten rounds, ranks 32, 16, 16, 8, 8, 4, 4, 2",
        "3",
        (),
        (
            (PLAIN, 3e-3),
            (COMPACT, 3e-3),
            (WARM_COMPACT, 3e-3),
            (Entry("warm plain", "florist", ("aggregation.tau=0.9", WARM)), 3e-3),
        ),
        task="strings",
    ),
    "categories": Table(
        "Dolly's categories by an encoder, five rounds, ranks 64, 32, 16, 16, 8, 8, 4, 4",
        "3",
        ('evaluation.metrics=["loss","accuracy"]',),
        ((PLAIN, 2e-3), (COMPACT, 2e-3), (WARM_COMPACT, 2e-3)),
        task="categories",
    ),
    "converged": Table(
        "Dolly's categories by an encoder, all examples, twenty rounds, ranks 64, 32, 16, 16, 8, 8, 4, 4",
        "5",
        (
            "data.rows=::",
            "training.epochs=0.5",
            "training.train_sampling_strategy=group_by_length",
            "model.dtype=bfloat16",
            "federation.rounds=20",
            "evaluation.every=5",
            'evaluation.metrics=["loss","accuracy"]',
        ),
        ((PLAIN, 2e-3), (COMPACT, 2e-3)),
        task="categories",
    ),
    "chat": Table(
        "Dolly by a language model, two rounds of four steps of batch 4, ranks 64, 32, 16, 16, 8, 8, 4, 4",
        "2",
        (
            "data.rows=::20",
            "data.chat_template=true",
            "data.prompt_template={instruction}\n{input}",
            "data.max_length=128",
            "training.steps=4",
            "training.batch_size=4",
            "federation.rounds=2",
            'lora.target_modules=["q_proj","v_proj"]',
            "evaluation.batch_size=16",
        ),
        ((PLAIN, 1e-3), (COMPACT, 1e-3), (WARM_COMPACT, 1e-3)),
        task="chat",
    ),
}


def dolly(out: Path, args: argparse.Namespace) -> tuple[Path, Sequence[str]]:
    """Dolly by a small Llama, which is made here."""
    size = QUICK if args.quick else WHOLE
    make_model(out / "model", size.pretraining_steps)
    return CONFIG, (base(out / "model"), *size.settings, *given_data(args))


def strings(out: Path, _: argparse.Namespace) -> tuple[Path, Sequence[str]]:
    """The eight string tasks, by the embedded model."""
    folder = out / "strings-task"
    return folder / "starts.toml" if folder.exists() else prepare(folder, rounds=10), ()


def categories(_: Path, args: argparse.Namespace) -> tuple[Path, Sequence[str]]:
    """Dolly's categories, by the encoder of `--encoder`."""
    if args.encoder is None:
        raise SystemExit("'categories' and 'converged' need --encoder, the directory of one such as all-MiniLM-L6-v2")
    return ROOT / "examples" / "dolly" / "categories.toml", (base(args.encoder), *given_data(args))


def chat(_: Path, args: argparse.Namespace) -> tuple[Path, Sequence[str]]:
    """Dolly by the language model of `--language-model`."""
    if args.language_model is None:
        raise SystemExit("the table 'chat' needs --language-model, the directory of one that has a chat template")
    return CONFIG, (base(args.language_model), *given_data(args))


def base(model: Path) -> str:
    """The key that names a base model."""
    return f"model.name_or_path={model.resolve()}"


def given_data(args: argparse.Namespace) -> tuple[str, ...]:
    """The key for the folder of the Dolly clients, if one was given."""
    return () if args.data is None else (f"data.path={args.data.resolve()}",)


TASKS: Mapping[str, Callable[[Path, argparse.Namespace], tuple[Path, Sequence[str]]]] = {
    "dolly": dolly,
    "strings": strings,
    "categories": categories,
    "chat": chat,
}
"""What makes a configuration and the keys that it needs, by the name of a task."""


def markdown(document: Mapping[str, Any], rates: Mapping[str, float]) -> Iterator[str]:
    """One table, line by line; every metric but the loss and the perplexity has a column of its own."""
    measured = {name: None for line in document["rows"] for name in line["metrics"]}
    others = [name for name in measured if name not in {"loss", "perplexity"}]
    names = "".join(f"{name} | " for name in others)
    yield f"| | rate | loss | against plain 0.9 | | {names}MB down | MB up | MB in all | times fewer |"
    yield f"|---|---:|---:|---:|---|{'---:|' * len(others)}---:|---:|---:|---:|"
    plain = total(document["rows"][0])
    for line in document["rows"]:
        loss = line["metrics"].get("loss")
        if loss is None:
            yield f"| {label(line)} | {rates[line['name']]:g} | failed | | | {'| ' * len(others)}| | | |"
            continue
        against = interval(loss["difference"], "+.4f") if loss["difference"] else ""
        also = "".join(f"{interval(line['metrics'][name], '.3f')} | " for name in others)
        costs = (line["download_bytes"] / 1e6, line["upload_bytes"] / 1e6, total(line), plain / total(line))
        yield (
            f"| {label(line)} | {rates[line['name']]:g} | {interval(loss, '.4f')} | {against} | "
            f"{loss['verdict'] or ''} | {also}{costs[0]:.2f} | {costs[1]:.2f} | {costs[2]:.2f} | {costs[3]:.1f} |"
        )


def label(line: Mapping[str, Any]) -> str:
    """What a line is called."""
    return LABELS.get(line["name"], line["name"])


def total(line: Mapping[str, Any]) -> float:
    """The megabytes that all clients sent and received in a run."""
    return (line["download_bytes"] + line["upload_bytes"]) / 1e6


def figure(documents: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Draw the loss against all bytes, a panel for each table, with 95% intervals over seeds."""
    import matplotlib.pyplot as plt  # noqa: PLC0415  # the figure alone needs it, and florist does not

    plt.rcParams["svg.hashsalt"] = "florist"
    drawing, panels = plt.subplots(1, len(documents), figsize=(5.2 * len(documents), 4.2), squeeze=False)
    for panel, (name, document) in zip(panels[0], documents.items(), strict=True):
        for line in document["rows"]:
            loss = line["metrics"].get("loss")
            if loss is None:
                continue
            half = (loss["high"] - loss["low"]) / 2 if loss["high"] is not None else 0.0
            panel.errorbar(total(line), loss["mean"], yerr=half, fmt="o", capsize=2, markersize=4)
            panel.annotate(label(line), (total(line), loss["mean"]), xytext=(4, 3), textcoords="offset points", size=6)
        panel.set(title=TABLES[name].title, xscale="log", xlabel="MB of all clients, both ways", ylabel="test loss")
        panel.margins(x=0.25)
    drawing.tight_layout()
    drawing.savefig(file, metadata={"Date": None})
    plt.close(drawing)


def play(out: Path, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Begin the comparison of a table, or go on with it."""
    table = TABLES[name]
    config, settings = TASKS[table.task](out, args)
    (_, rate), *others = table.entries
    own = (
        f"training.learning_rate={rate:g}",
        "communication.preset=plain",
        "aggregation.tau=0.9",
        "training.threads=1",
    )
    variants = [entry.variant(rate) for entry, rate in others]
    seeds = args.seeds or (QUICK.seeds if args.quick else table.seeds)
    return compare(out / name, [*settings, *SPLIT, *table.settings, *own], variants, seeds, args.jobs, config=config)


def main() -> None:
    """Make the model, then the tables and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, help="directory; by default runs/communication, with -quick if that is asked"
    )
    parser.add_argument("--data", type=Path, help="folder of the Dolly clients; by default that of the example")
    parser.add_argument("--encoder", type=Path, help="directory of an encoder, for 'categories' and 'converged'")
    parser.add_argument("--language-model", type=Path, help="directory of a language model, for the table 'chat'")
    parser.add_argument(
        "--only",
        action="append",
        choices=list(TABLES),
        help="one table; may be given several times; by default all of Dolly",
    )
    parser.add_argument("--seeds", help="as `florist compare` takes them, in the place of a table's own")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    out = args.out or Path("runs", "communication-quick" if args.quick else "communication")
    out.mkdir(parents=True, exist_ok=True)
    started, facts = time.perf_counter(), machine()
    names = args.only or [name for name, table in TABLES.items() if table.task == "dolly"]
    documents = {name: play(out, name, args) for name in names}
    facts["seconds"] = time.perf_counter() - started
    lines = []
    for name, document in documents.items():
        rates = {entry.name: rate for entry, rate in TABLES[name].entries}
        lines += [f"{TABLES[name].title}; loss on the {document['metric_source']}.", description(facts, document), ""]
        lines += [*markdown(document, rates), ""]
    text = "\n".join(lines)
    print(text)
    replace_file(out / "communication.md", text)
    replace_file(out / "communication.json", json.dumps({"machine": facts, **documents}, indent=2) + "\n")
    figure(documents, out / "communication.svg")


if __name__ == "__main__":
    main()
