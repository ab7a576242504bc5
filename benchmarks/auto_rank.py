"""Is there a rank rule without a number to choose? Candidates against fixed tau, on the settings of the tables.

    python benchmarks/auto_rank.py --data DIR              # all settings, three seeds; goes on where it stopped
    python benchmarks/auto_rank.py --data DIR --lines "tau 0.9" --seeds 0
    python benchmarks/auto_rank.py --data DIR --quick      # the same in small: its numbers mean nothing

Rounds are those of `table.py` (Dolly by a small Llama, which is made here) and of the demonstration, in float32 and
with the aligned start. Some of the clients' examples are set apart, on which the best fixed tau is chosen. Lines that
send with feedback at the server are measured with what it still holds back, as the final adapter has it.

Every run is kept in OUT/runs.jsonl. What is printed is also in OUT/auto-rank.md.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from benchmarks.attacks import Silent, Trainings
from benchmarks.rank_candidates import Elbow, SignFlips
from benchmarks.table import CONFIG, FEDERATIONS, QUICK, WHOLE, machine, make_model
from florist.aggregation import Florist
from florist.comparison.intervals import Estimate, estimate
from florist.config import read_config
from florist.config.building import build
from florist.config.communication import aggregator_of, communication_of
from florist.config.reading import DEMONSTRATION
from florist.config.sections import Config
from florist.data.examples import EncodedExamples
from florist.federation.history import RunDirectory
from florist.federation.kept_rounds import KeepRounds
from florist.federation.run_facts import RunFacts
from florist.federation.simulation import Simulation
from florist.files.outputs import replace_file
from florist.models.local_training import TrainingContext, by_trainer
from florist.models.training import TrainingOutcome
from florist.rounds import Aggregator

TAUS = (0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
MARGIN = 0.01
"""So much loss a candidate may be above the best fixed tau."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the tables.

    Attributes:
        name: what it is called.
        keys: the keys in which it differs from a setting.
        aggregator: the method where no keys say it.
        median_budget: whether a broadcast has as many bytes as the adapter of a client of the median rank.
    """

    name: str
    keys: tuple[str, ...] = ()
    aggregator: Aggregator | None = None
    median_budget: bool = False


FEEDBACK = ("communication.feedback=server",)
FIXED = tuple(Line(f"tau {tau}", (f"aggregation.tau={tau}",)) for tau in TAUS)
FIXED_WITH_FEEDBACK = tuple(
    Line(f"tau {tau}, feedback", (f"aggregation.tau={tau}", *FEEDBACK)) for tau in (0.5, 0.7, 0.9)
)
CANDIDATES = (
    Line("signs, 95th percentile", aggregator=SignFlips()),
    Line("signs, median", aggregator=SignFlips(quantile=0.5)),
    Line("elbow of the energy", aggregator=Florist(Elbow())),
    Line("elbow of the values", aggregator=Florist(Elbow(power=1.0))),
)
CANDIDATES_WITH_FEEDBACK = (Line("budget of the median rank, feedback", FEEDBACK, median_budget=True),)
LINES = (*FIXED, *FIXED_WITH_FEEDBACK, *CANDIDATES, *CANDIDATES_WITH_FEEDBACK)


@dataclass(frozen=True, slots=True)
class Setting:
    """What is learned by whom.

    Attributes:
        title: its heading.
        config: the file of its configuration.
        keys: the keys in which it differs from that.
        quick: the keys that make it small.
        dolly: whether it takes the data of Dolly and the model that is made for them.
    """

    title: str
    config: Path
    keys: tuple[str, ...]
    quick: tuple[str, ...]
    dolly: bool = True


_DOLLY = ("data.validation_fraction=0.04",)
SETTINGS: Mapping[str, Setting] = {
    "equal": Setting(
        "Dolly, every client with rank 16",
        CONFIG,
        (*_DOLLY, "lora.ranks=16", f"training.learning_rate={FEDERATIONS['homogeneous'].rates['florist']:g}"),
        QUICK.settings,
    ),
    "unlike": Setting(
        "Dolly, ranks 64, 32, 16, 16, 8, 8, 4, 4",
        CONFIG,
        (
            *_DOLLY,
            f"lora.ranks={FEDERATIONS['heterogeneous'].ranks}",
            f"training.learning_rate={FEDERATIONS['heterogeneous'].rates['florist']:g}",
        ),
        QUICK.settings,
    ),
    "demonstration": Setting(
        "The demonstration, ranks 32, 16, 8, 4",
        DEMONSTRATION,
        ("data.validation_fraction=0.1",),
        ("data.rows=::10", "training.steps=2", "federation.rounds=2"),
        dolly=False,
    ),
}


class FirstRounds(Trainings):
    """Trains as the Trainer does, and keeps what came out of first rounds, which all lines of a seed have in common."""

    def __call__(self, model: nn.Module, examples: EncodedExamples, context: TrainingContext) -> TrainingOutcome:
        """Train, or take what was trained before."""
        return (
            super().__call__(model, examples, context)
            if context.round_number == 1
            else by_trainer(model, examples, context)
        )


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Where runs are kept, and what all of them have in common.

    Attributes:
        out: the directory.
        data: the folder of the Dolly clients; None for that of the example.
        quick: whether they are small.
    """

    out: Path
    data: Path | None
    quick: bool

    @property
    def file(self) -> Path:
        """One line a run."""
        return self.out / "runs.jsonl"

    def config(self, setting: Setting, seed: int, keys: Sequence[str] = ()) -> Config:
        """The configuration of a run."""
        common = [
            "training.threads=1",
            "communication.preset=plain",
            'evaluation.metrics=["loss"]',
            f"federation.seed={seed}",
            *setting.keys,
            *(setting.quick if self.quick else ()),
            "evaluation.every=100",
        ]
        if setting.dolly:
            common.append(f"model.name_or_path={(self.out / 'model').resolve()}")
            if self.data is not None:
                common.append(f"data.path={self.data.resolve()}")
        return read_config(setting.config, [*common, *keys])

    def kept(self) -> dict[tuple[str, str, int], dict[str, Any]]:
        """The runs that were played, by setting, line and seed."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        runs = [json.loads(line) for line in lines]
        return {(run["setting"], run["line"], run["seed"]): run for run in runs}

    def play(self, name: str, line: Line, seed: int, loaded: Simulation) -> dict[str, Any]:
        """Play one run.

        Args:
            name: of the setting.
            line: of the table.
            seed: of the run.
            loaded: the simulation of the setting and the seed, whose method is replaced.
        """
        keys = line.keys
        if line.median_budget:
            middle = median(client.lora.rank for client in loaded.clients)
            numbers = sum(m + n for m, n in loaded.model.shapes.values())
            keys = (*keys, f"aggregation.budget={int(4 * middle * numbers)}")
        config = self.config(SETTINGS[name], seed, keys)
        largest = max(client.lora.rank for client in loaded.clients)
        rules = replace(
            loaded.federation,
            aggregator=line.aggregator or aggregator_of(config, largest),
            communication=communication_of(config),
        )
        training = FirstRounds(self.out / "trained", {}, 1)
        simulation = replace(loaded, federation=rules, local_training=training, save_tokenizer=None)
        began = time.process_time()
        with tempfile.TemporaryDirectory() as scratch:
            facts = RunFacts(version("florist"), "florist", 1, {}, None, KeepRounds.LAST)
            directory = RunDirectory.create(Path(scratch, "run"), "", facts)
            records = simulation.run(directory, Silent())
            state, _ = directory.load(simulation.initial_state)
            tested = directory.tested
        assert tested is not None  # noqa: S101  # validation examples are set apart
        # Of the adapter that is tested, which has what the server held back.
        flushed = simulation.measure(state.flushed_adapter, state.saved_parameters)["loss"]
        return {
            "setting": name,
            "line": line.name,
            "seed": seed,
            "validation": flushed,
            "broadcast_validation": records[-1].metrics["loss"],
            "test": tested.metrics["loss"],
            "client_download_bytes": fmean(record.download_bytes / len(record.clients) for record in records),
            "ranks": [record.total_rank for record in records],
            "kept": [1 - record.relative_error**2 for record in records],
            "cpu_seconds": time.process_time() - began,
        }

    def play_all(self, settings: Sequence[str], lines: Sequence[Line], seeds: Sequence[int]) -> None:
        """Play what is missing."""
        (self.out / "trained").mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            for name in settings:
                missing = [line for line in lines if (name, line.name, seed) not in self.kept()]
                if not missing:
                    continue
                loaded = build(self.config(SETTINGS[name], seed))
                for line in missing:
                    run = self.play(name, line, seed, loaded)
                    with self.file.open("a") as file:
                        file.write(json.dumps(run) + "\n")
                    print(f"{name}, seed {seed}, {line.name}: {run}", file=sys.stderr, flush=True)
                shutil.rmtree(self.out / "trained")
                (self.out / "trained").mkdir()


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """The runs of one line in one setting, by seed."""

    line: str
    runs: Mapping[int, Mapping[str, Any]]

    def mean(self, key: str) -> float:
        """The mean over the seeds."""
        return fmean(run[key] for run in self.runs.values())

    def against(self, other: "Outcome", key: str) -> Estimate:
        """The mean of the differences within each seed that both have."""
        found = estimate([run[key] - other.runs[seed][key] for seed, run in self.runs.items() if seed in other.runs])
        assert found is not None  # noqa: S101  # every line has seed 0
        return found

    def bytes_against(self, other: "Outcome") -> float:
        """The bytes over those of another line, in the seeds that both have."""
        both = [seed for seed in self.runs if seed in other.runs]
        own, theirs = (sum(each.runs[seed]["client_download_bytes"] for seed in both) for each in (self, other))
        return own / theirs


def best(fixed: Sequence[Outcome]) -> Outcome:
    """The fixed tau of the lowest mean validation loss."""
    return min(fixed, key=lambda outcome: outcome.mean("validation"))


def cheapest(fixed: Sequence[Outcome]) -> Outcome:
    """The fixed tau of the fewest bytes among those within the margin of the best one."""
    lowest = best(fixed)
    near = [each for each in fixed if each.against(lowest, "validation").mean <= MARGIN]
    return min(near, key=lambda outcome: outcome.mean("client_download_bytes"))


def markdown(outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    """The table of one setting, line by line: without feedback, and with it.

    A candidate is compared with the best and the cheapest fixed tau, and one with feedback with those of both kinds.
    """
    yield "| | seeds | kept: first, last | validation | test | KB | against | validation | test | bytes | as good |"
    yield "|---|---:|---:|---:|---:|---:|---|---:|---:|---:|---|"
    references: dict[str, Outcome] = {}
    for fixed, candidates in ((FIXED, CANDIDATES), (FIXED_WITH_FEEDBACK, CANDIDATES_WITH_FEEDBACK)):
        taus, others = (
            [outcomes[line.name] for line in lines if line.name in outcomes] for lines in (fixed, candidates)
        )
        # A tau that lacks seeds of the others could be best by luck.
        most = max((len(each.runs) for each in taus), default=0)
        eligible = [each for each in taus if len(each.runs) == most]
        if eligible:
            references |= {each.line: each for each in (best(eligible), cheapest(eligible))}
        for outcome in taus:
            yield f"{_measured(outcome)} | | | | |"
        for outcome in others:
            for number, reference in enumerate(references.values()):
                start = "| | | | | | |" if number else _measured(outcome)
                validation, test = (_interval(outcome.against(reference, key)) for key in ("validation", "test"))
                ratio, verdict = outcome.bytes_against(reference), "yes" if qualifies(outcome, reference) else "no"
                yield f"{start} {reference.line} | {validation} | {test} | {ratio:.2f} | {verdict} |"


def _measured(outcome: Outcome) -> str:
    first, last = (fmean(run["kept"][k] for run in outcome.runs.values()) for k in (0, -1))
    validation, test = (f"{outcome.mean(key):.3f}" for key in ("validation", "test"))
    kilobytes = outcome.mean("client_download_bytes") / 1e3
    return (
        f"| {outcome.line} | {len(outcome.runs)} | {first:.2f}, {last:.2f} | {validation} | {test} | {kilobytes:.0f} |"
    )


def qualifies(outcome: Outcome, reference: Outcome) -> bool:
    """Whether a candidate is within the margin of a fixed tau by validation loss, at no more bytes."""
    return outcome.against(reference, "validation").mean <= MARGIN and outcome.bytes_against(reference) <= 1


def _interval(found: Estimate) -> str:
    spread = f" ± {found.half_width:.3f}" if found.half_width is not None and found.count > 2 else ""
    return f"{found.mean:+.3f}{spread}"


def report(runs: Mapping[tuple[str, str, int], Mapping[str, Any]]) -> Iterator[str]:
    """The tables of all settings."""
    for name, setting in SETTINGS.items():
        by_line: dict[str, dict[int, Mapping[str, Any]]] = {}
        for (where, line, seed), run in sorted(runs.items()):
            if where == name:
                by_line.setdefault(line, {})[seed] = run
        if by_line:
            yield f"**{setting.title}**"
            yield ""
            yield from markdown({line: Outcome(line, own) for line, own in by_line.items()})
            yield ""


def main() -> None:
    """Make the model, play what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="directory; by default runs/auto-rank, or runs/auto-rank-quick")
    parser.add_argument("--data", type=Path, help="folder of the Dolly clients; by default that of the example")
    parser.add_argument("--only", action="append", choices=list(SETTINGS), help="one setting; several times for more")
    parser.add_argument("--lines", action="append", choices=[line.name for line in LINES], help="some of the lines")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    benchmark = Benchmark(
        args.out or Path("runs", "auto-rank-quick" if args.quick else "auto-rank"), args.data, args.quick
    )
    benchmark.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    settings = args.only or list(SETTINGS)
    if any(SETTINGS[name].dolly for name in settings):
        make_model(benchmark.out / "model", (QUICK if args.quick else WHOLE).pretraining_steps)
    facts = machine()
    benchmark.play_all(settings, [line for line in LINES if args.lines is None or line.name in args.lines], args.seeds)
    text = "\n".join(
        [f"{facts['processor']}, {facts['cpus']} CPUs, 1 thread, torch {facts['torch']}", "", *report(benchmark.kept())]
    )
    print(text)
    replace_file(benchmark.out / "auto-rank.md", text)


if __name__ == "__main__":
    main()
