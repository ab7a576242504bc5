"""What protection costs in quality: loss against epsilon, where many small clients train linear rounds or FFA-LoRA.

    python benchmarks/epsilon.py demonstration                     # one seed after the other
    python benchmarks/epsilon.py dolly --data DIR --model LLAMA      # LLAMA: what examples/dolly/make_model.py makes
    python benchmarks/epsilon.py categories --data DIR --model ENCODER
    python benchmarks/epsilon.py demonstration --search              # clip and rank, on validation examples
    python benchmarks/epsilon.py demonstration --lines ffa           # one line, or several, of the table

Clients are drawn one by one (`sampling = "poisson"`), take one step on a few of their examples, and go through the
model together (`together.py`). Everything else is what a private round of `florist simulate` does. Infinity is the
same round with a clip and hardly any noise; "no protection" has neither, and each client counts by its examples.

Each run is a line of OUT/SETTING.jsonl, so that a call that was stopped goes on. `DIR` is a folder with Dolly's
`client_0.json` to `client_7.json`, which are cut into fifty clients each, or for `categories` into clients of 32
examples.
"""

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from scripts.make_demonstration import NEW_TASKS, example_of, sample_input

from benchmarks.table import machine
from benchmarks.together import Remembered, Together
from florist.comparison.intervals import FEWEST_VALUES, Estimate, estimate
from florist.config import DEMONSTRATION, read_config
from florist.config.building import build
from florist.config.sections import Config
from florist.config.tasks import RecentEncodings
from florist.federation.local_init import FRESH_ROW_NORM
from florist.federation.simulation import Simulation
from florist.files.outputs import new_directory

ROOT = Path(__file__).resolve().parents[1]
DELTA = 1e-3
EPSILONS = (1.0, 3.0, 8.0, math.inf)
NO_NOISE = 1e-6
"""The noise multiplier of epsilon infinity: the round is the same but for noise that does not show."""
SEARCH_SEED, SEARCH_EPSILON = 7, 8.0
HELD_OUT = 200
"""How many validation examples there are, and of Dolly test examples as well."""


@dataclass(frozen=True, slots=True)
class Line:
    """A method of the table.

    Attributes:
        name: what the table calls it.
        family: whose clip and rate it takes.
        settings: its keys.
        by_noise: whether it needs noise, so that it has no line without protection.
        unlike: the epsilons at which it is another method than the line before it.
    """

    name: str
    family: str
    settings: tuple[str, ...]
    by_noise: bool = False
    unlike: tuple[float, ...] = EPSILONS


TAU = Line("linear, tau 0.9", "linear", ("aggregation.method=linear", "aggregation.tau=0.9"))
LINES = (
    TAU,
    Line("linear, noise_edge", "linear", ("aggregation.method=linear", "aggregation.noise_edge=true"), by_noise=True),
    Line(
        'linear, "shrunk"',
        "linear",
        ("aggregation.method=linear", "aggregation.noise_edge=shrunk"),
        by_noise=True,
        unlike=EPSILONS[:-1],  # without noise nothing is shrunk
    ),
    Line("ffa", "ffa", ("aggregation.method=ffa",)),
)


@dataclass(frozen=True, slots=True)
class Choice:
    """What is chosen on validation examples, each family by itself.

    Attributes:
        rank: that of each client.
        clip: the clip; the step of AdamW is as long.
    """

    rank: int
    clip: float


@dataclass(frozen=True, slots=True)
class Setting:
    """A federation of many small clients.

    Attributes:
        config: the file that it begins with.
        settings: what is unlike there.
        numbers: how many numbers a client of rank 1 trains.
        head: how many more it trains in a head.
        rounds: how many are played.
        metrics: what is measured at the end.
        candidates: what the search tries.
        chosen: what it chose, by family.
        lower: how many lower layers nobody trains; their output is remembered.
        rows: how many examples each client has that is cut out of one of Dolly's eight.
        parts: into how many clients each of the eight is cut; None for as many as its examples are enough for.
    """

    config: Path
    settings: tuple[str, ...]
    numbers: int
    head: int
    rounds: int
    metrics: tuple[str, ...]
    candidates: tuple[Choice, ...]
    chosen: Mapping[str, Choice]
    lower: int = 0
    rows: int = 8
    parts: int | None = 50


COMMON = (
    "training.threads=1",
    "training.batch_size=2",
    "communication.preset=plain",
    "evaluation.batch_size=50",
)
SMALL = ("o_proj", "down_proj")
SETTINGS: Mapping[str, Setting] = {
    "demonstration": Setting(
        DEMONSTRATION,
        (
            "data.partition=shards",
            "data.num_clients=200",
            "federation.fraction=0.25",
            f"lora.target_modules={json.dumps(SMALL)}",
            "training.steps=1",
        ),
        4 * (128 + 128),
        0,
        12,
        ("loss",),
        (Choice(4, 3.0), Choice(4, 6.0), Choice(4, 12.0), Choice(16, 6.0), Choice(16, 12.0)),
        {"linear": Choice(4, 6.0), "ffa": Choice(4, 6.0)},
    ),
    "dolly": Setting(
        ROOT / "examples" / "dolly" / "causal-lm.toml",
        (
            'data.rows=":"',
            "federation.fraction=0.125",
            f"lora.target_modules={json.dumps(SMALL)}",
            "training.steps=1",
        ),
        2 * (128 + 128),
        0,
        12,
        ("loss",),
        (Choice(4, 1.5), Choice(4, 3.0), Choice(4, 6.0)),
        {"linear": Choice(4, 3.0), "ffa": Choice(4, 3.0)},
    ),
    "categories": Setting(
        ROOT / "examples" / "dolly" / "categories.toml",
        (
            'data.rows=":"',
            "data.max_length=32",
            "federation.fraction=0.125",
            "training.batch_size=8",
            "training.epochs=0.25",  # one step on eight of 32 examples
            r"lora.target_modules=.*encoder\.layer\.5\.attention\.self\.(query|value)",
        ),
        2 * 384,
        8 * 384 + 8,
        36,
        ("accuracy", "loss"),
        (Choice(4, 3.0), Choice(4, 12.0), Choice(4, 36.0)),
        {"linear": Choice(4, 12.0), "ffa": Choice(4, 12.0)},
        lower=5,
        rows=32,
        parts=None,
    ),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One run.

    Attributes:
        line: the name of its line.
        epsilon: what may be spent, infinity for a clip alone; None for no protection at all.
        seed: the seed of the run.
        choice: rank and clip.
        rounds: how many are played.
    """

    line: str
    epsilon: float | None
    seed: int
    choice: Choice
    rounds: int

    @property
    def key(self) -> str:
        """What it is found by."""
        return json.dumps(asdict(self), sort_keys=True)


def cells_of(setting: Setting, seed: int) -> Iterator[Cell]:
    """All cells of a seed."""
    for line in LINES:
        choice = setting.chosen[line.family]
        for epsilon in line.unlike:
            yield Cell(line.name, epsilon, seed, choice, setting.rounds)
        if not line.by_noise:
            yield Cell(line.name, None, seed, choice, setting.rounds)


def searched(setting: Setting) -> Iterator[Cell]:
    """The runs that rank and clip are chosen by: one line a family, with a seed of its own."""
    for line in (TAU, LINES[-1]):
        for choice in setting.candidates:
            yield Cell(line.name, SEARCH_EPSILON, SEARCH_SEED, choice, setting.rounds)


def config_of(cell: Cell, setting: Setting, own: Sequence[str]) -> Config:
    """The configuration of a run.

    Args:
        cell: the run.
        setting: its federation.
        own: further keys, the paths of model and data.
    """
    line = next(line for line in LINES if line.name == cell.line)
    # The first step of AdamW moves each number by the rate, so that the rate says how long it is: just above the clip.
    # In B the scaling of 2 and the norm of a row of A come in, since the clip is in units of the product.
    squares = (2 * FRESH_ROW_NORM) ** 2 * setting.numbers * cell.choice.rank + setting.head
    rate = 1.05 * cell.choice.clip / math.sqrt(squares)
    keys = [
        *COMMON,
        *setting.settings,
        *own,
        *line.settings,
        f"evaluation.metrics={json.dumps(setting.metrics)}",
        f"lora.ranks={cell.choice.rank}",
        f"training.learning_rate={rate}",
        f"federation.seed={cell.seed}",
        f"federation.rounds={cell.rounds}",
    ]
    if cell.epsilon is not None:
        noise = f"noise_multiplier={NO_NOISE}" if cell.epsilon == math.inf else f"epsilon={cell.epsilon}"
        keys += [f"privacy.{key}" for key in (noise, f"clip={cell.choice.clip}", f"delta={DELTA}", "sampling=poisson")]
    return read_config(setting.config, keys)


def play(simulation: Simulation, together: Together, *, chosen: bool) -> dict[str, Any]:
    """Play the rounds of a simulation, and measure what comes out.

    Args:
        simulation: what is played.
        together: trains its clients.
        chosen: whether clip and rank are chosen, so that test examples may be looked at.
    """
    metrics = simulation.final_metrics if chosen else simulation.metrics
    state, rules, private = simulation.initial_state, simulation.federation, simulation.private
    down: list[float] = []
    ranks: list[int] = []
    for number in range(1, simulation.rounds + 1):
        names = rules.participants(number) if private is None else private.participants(rules, number)
        asked = [client for client in simulation.clients if client.client_id in names]
        updates = together.train(state, asked)
        # All clients have one rank, so that those who lack the same rounds are sent the same.
        one_each = {state.holds.get(client.client_id): client.client_id for client in asked}
        lacked = {holds: rules.download(state, client_id).nbytes for holds, client_id in one_each.items()}
        down += [lacked[state.holds.get(client.client_id)] for client in asked]
        closed = rules.close_round(state, updates) if private is None else private.closed(rules, state, updates)
        state = closed.state
        if closed.broadcast is not None:
            ranks.append(closed.broadcast.certificate.total_rank)
    noise = private.noise if private is not None else None
    return {
        "metrics": together.measure(state, metrics),
        "down_bytes": fmean(down),
        "total_rank": fmean(ranks),
        "noise_multiplier": noise.multiplier if noise is not None else None,
    }


def run(name: str, cells: Sequence[Cell], own: Sequence[str], out: Path) -> dict[Cell, Mapping[str, Any]]:
    """The outcomes of cells, each played unless it is kept."""
    setting, file = SETTINGS[name], out / f"{name}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    kept = {line["key"]: line for line in lines}
    encoded, found = RecentEncodings(), dict[Cell, Mapping[str, Any]]()
    hidden = dict[bytes, torch.Tensor]()
    for number, cell in enumerate(cells, start=1):
        if cell.key not in kept:
            began = time.process_time()
            simulation = build(config_of(cell, setting, own), None, encoded)
            if setting.lower:
                encoder: Any = simulation.model.peft.get_base_model()
                Remembered.below(encoder.base_model, setting.lower, hidden)
            outcome = {"key": cell.key, **play(simulation, Together(simulation), chosen=cell.seed != SEARCH_SEED)}
            outcome["cpu_seconds"] = time.process_time() - began
            with file.open("a") as target:
                target.write(json.dumps(outcome) + "\n")
            kept[cell.key] = outcome
            print(
                f"{number}/{len(cells)} {cell}: {outcome['metrics']}, {outcome['cpu_seconds']:.0f} s", file=sys.stderr
            )
        found[cell] = kept[cell.key]
    return found


def write_demonstration(folder: Path) -> None:
    """Write validation examples of the demonstration's tasks, of which none is in its files."""
    draw, told = Random(1), DEMONSTRATION.parent / "demonstration"  # noqa: S311  # no secrets here
    taken = {json.loads(line)["input"] for name in ("train", "test") for line in read(told / f"{name}.jsonl")}
    inputs: dict[str, None] = {}
    while len(inputs) < HELD_OUT:
        if (text := sample_input(draw)) not in taken:
            inputs[text] = None
    tasks = list(NEW_TASKS)
    examples = [example_of(tasks[place % len(tasks)], text) for place, text in enumerate(inputs)]
    (folder / "validation.jsonl").write_text("".join(json.dumps(each) + "\n" for each in examples))


def write_dolly(folder: Path, data: Path, setting: Setting) -> None:
    """Cut each of the eight clients into many, and hold some of the other examples out."""
    validation: list[Any] = []
    test: list[Any] = []
    clients = 0
    for number in range(8):
        examples = json.loads((data / f"client_{number}.json").read_text())
        Random(number).shuffle(examples)  # noqa: S311  # no secrets here
        parts = setting.parts if setting.parts is not None else (len(examples) - HELD_OUT // 4) // setting.rows
        for begin in range(0, parts * setting.rows, setting.rows):
            own = examples[begin : begin + setting.rows]
            (folder / f"client_{clients:03d}.json").write_text(json.dumps(own))
            clients += 1
        rest = examples[parts * setting.rows :]
        validation += rest[: HELD_OUT // 8]
        test += rest[HELD_OUT // 8 : HELD_OUT // 4]
    (folder / "validation.json").write_text(json.dumps(validation))
    (folder / "test.json").write_text(json.dumps(test))


def read(file: Path) -> list[str]:
    """The lines of a file."""
    return file.read_text(encoding="utf-8").splitlines()


def prepared(name: str, out: Path, data: Path | None, model: str | None) -> list[str]:
    """Write the data of a setting, unless it is there, and say where it is."""
    folder = out / f"{name}-data"
    if not folder.exists():
        with new_directory(folder) as draft:
            if name == "demonstration":
                write_demonstration(draft)
            elif data is not None:
                write_dolly(draft, data, SETTINGS[name])
            else:
                raise SystemExit(f"{name} needs --data DIR, the folder of Dolly's eight clients")
    if name == "demonstration":
        return [f"data.validation={(folder / 'validation.jsonl').resolve()}"]
    own = [f"data.path={folder.resolve()}", "data.validation=validation.json", "data.test=test.json"]
    return own + ([f"model.name_or_path={model}"] if model is not None else [])


def markdown(cells: Sequence[Cell], found: Mapping[Cell, Mapping[str, Any]], metrics: Sequence[str]) -> Iterator[str]:
    """The table: a row a line and epsilon; what is paired by seed is paired with tau 0.9 at the same epsilon."""
    loss = metrics[0]
    yield "| | epsilon | noise | " + " | ".join(metrics) + f" | {loss} against tau 0.9 | | rank | KB down |"
    yield "|---|---:|---:|" + "---:|" * len(metrics) + "---:|---|---:|---:|"
    for epsilon in (None, *reversed(EPSILONS)):
        for line in LINES:
            own = {c.seed: found[c] for c in cells if (c.line, c.epsilon) == (line.name, epsilon)}
            tau = {c.seed: found[c] for c in cells if (c.line, c.epsilon) == (TAU.name, epsilon)}
            if not own:
                continue
            told = "no protection" if epsilon is None else "infinity" if epsilon == math.inf else f"{epsilon:g}"
            multiplier = next(iter(own.values()))["noise_multiplier"]
            noise = "" if multiplier is None or multiplier <= NO_NOISE else f"{multiplier:.2f}"
            values = " | ".join(interval([each["metrics"][name] for each in own.values()], ".3f") for name in metrics)
            pairs = [own[seed]["metrics"][loss] - tau[seed]["metrics"][loss] for seed in own if seed in tau]
            against = "" if line is TAU else interval(pairs, "+.3f")
            verdict = "" if line is TAU else verdict_of(estimate(pairs), lower_is_better=loss == "loss")
            rank = fmean(each["total_rank"] for each in own.values())
            down = fmean(each["down_bytes"] for each in own.values()) / 1e3
            yield (f"| {line.name} | {told} | {noise} | {values} | {against} | {verdict} | {rank:.1f} | {down:.1f} |")


def interval(values: Sequence[float], form: str) -> str:
    """A mean, and half of its 95% interval if there are enough values."""
    found = estimate(values)
    if found is None:
        return ""
    spread = f" ± {found.half_width:.3f}" if found.half_width is not None and found.count >= FEWEST_VALUES else ""
    return f"{found.mean:{form}}{spread}"


def verdict_of(found: Estimate | None, *, lower_is_better: bool) -> str:
    """What an interval of differences says."""
    if found is None or found.sign is None or found.count < FEWEST_VALUES:
        return ""
    return "tied" if found.sign == 0 else "better" if (found.sign < 0) == lower_is_better else "worse"


def main() -> None:
    """Play what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=list(SETTINGS))
    parser.add_argument("--out", type=Path, default=Path("runs", "epsilon"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lines", choices=[line.name for line in LINES], nargs="+", default=None)
    parser.add_argument("--search", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("absl").setLevel(logging.ERROR)  # the accountant tells of each order that it leaves out
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    args.out.mkdir(parents=True, exist_ok=True)
    own = prepared(args.setting, args.out, args.data, args.model)
    setting = SETTINGS[args.setting]
    cells = [*searched(setting)] if args.search else [c for seed in args.seeds for c in cells_of(setting, seed)]
    if args.lines:
        cells = [cell for cell in cells if cell.line in args.lines]
    found = run(args.setting, cells, own, args.out)
    if args.search:
        for cell, outcome in found.items():
            print(cell.line, cell.choice, outcome["metrics"])
        return
    facts, seconds = machine(), [each["cpu_seconds"] for each in found.values()]
    print(f"{facts['processor']}; Python {facts['python']}, torch {facts['torch']}, 1 thread, float32")
    print(f"{sum(seconds):.0f} s of CPU, {max(seconds):.0f} s the longest run\n")
    print(*markdown(cells, found, setting.metrics), sep="\n")


if __name__ == "__main__":
    main()
