"""Hostile clients: what the demonstration learns where two of eight attack, and what defences save and cost.

    python benchmarks/attacks.py table --since 4              # one seed: every attack, in the last round alone
    python benchmarks/attacks.py table --seeds 0 1 2 --attacks nobody   # what a defence costs where nobody is hostile
    python benchmarks/attacks.py table --preset compact --since 4
    python benchmarks/attacks.py server                       # the server's seconds for each defence
    python benchmarks/attacks.py table --quick                # a minute: it runs, and its numbers mean nothing

Eight clients of unlike ranks share the demonstration's four tasks by a Dirichlet(1) partition. From the round `--since`
on, two of them upload what an attack makes of their updates (`tests/attacks.py`), or train on wrong answers. Defences
are on from the first round, and all but "none" have the guard. What is printed is the exact match on the test examples
after the last round, from 0 to 1, and the loss.

Every cell of the table is kept in OUT/cells, and what a client trained in OUT/trained by all that it depends on: cells
that begin alike share their first rounds, and a call that was stopped goes on. A call takes the cells of others in
OUT from disk, so that two calls with unlike `--attacks` can work on one table at once.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.attacks import (
    Attack,
    Claiming,
    Gauge,
    HarmlessHalves,
    InnerProduct,
    LittleIsEnough,
    Noise,
    Scaled,
    as_trained,
    infiltrated,
    mislabelled,
)

from benchmarks.table import machine
from florist.aggregation import Florist
from florist.comparison.intervals import Estimate, estimate
from florist.config import read_config
from florist.config.building import build
from florist.config.reading import DEMONSTRATION
from florist.config.robust import guard_of, robust_rule
from florist.config.sections import Config
from florist.config.splits import read_splits
from florist.data.examples import EncodedExamples
from florist.evaluation import Measurements
from florist.factors import AdapterState, LoraFactor
from florist.federation.closed_round import ClosedRound
from florist.federation.guard import Guard
from florist.federation.history import RunDirectory
from florist.federation.kept_rounds import KeepRounds
from florist.federation.moved import Moved, inner_products_of
from florist.federation.rules import Federation
from florist.federation.run_facts import RunFacts
from florist.federation.simulation import Simulation
from florist.federation.state import ServerState
from florist.files.outputs import new_directory, replace_file
from florist.models.local_training import TrainingContext, by_trainer
from florist.models.training import TrainingOutcome
from florist.ranks import EnergyThreshold
from florist.rounds import ClientUpdate
from florist.seeding import derive_seed

RANKS = (32, 16, 16, 8, 8, 4, 4, 4)
HOSTILE = ("client_2", "client_5")
"""Of ranks 16 and 4."""

NOBODY, MISLABELLED = "nobody", "wrong answers"
ATTACKS: Mapping[str, Attack] = {
    NOBODY: as_trained,
    "scaled, 100 times": Scaled(100.0),
    "sign flipped": Scaled(-1.0),
    "sign flipped, 10 times": Scaled(-10.0),
    "noise of an honest norm": Noise(),
    "noise, 100 times": Noise(100.0),
    MISLABELLED: as_trained,
    "little is enough, z = 1.5": LittleIsEnough(),
    "inner product, 9 median norms": InnerProduct(9.0, of_median=True),
    "harmless halves": HarmlessHalves(),
    "same product, other halves": Gauge(),
    "sign flipped, claims 10^6 times": Claiming(Scaled(-1.0)),
}
DEFENCES: Mapping[str, Sequence[str]] = {
    "none": ("guard.norm_factor=false", "guard.examples_factor=false"),
    "guard": (),
    "clipped-mean": ("aggregation.robust=clipped-mean",),
    "geometric-median": ("aggregation.robust=geometric-median",),
    "geometric-median, norm 4": ("aggregation.robust=geometric-median", "guard.norm_factor=4"),
    "geometric-median, norm 4, cosine 0": (
        "aggregation.robust=geometric-median",
        "guard.norm_factor=4",
        "guard.smallest_cosine=0",
    ),
    "geometric-median, hostile 0.45": ("aggregation.robust=geometric-median", "aggregation.hostile=0.45"),
    "clipped-mean, norm 4, cosine 0": (
        "aggregation.robust=clipped-mean",
        "guard.norm_factor=4",
        "guard.smallest_cosine=0",
    ),
    "multi-krum": ("aggregation.robust=multi-krum",),
    "guard, component 1.5": ("guard.component_factor=1.5",),
    "geometric-median, component 1.5": ("aggregation.robust=geometric-median", "guard.component_factor=1.5"),
}


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run."""

    rounds: int
    steps: int
    settings: tuple[str, ...] = ()


WHOLE = Size(rounds=4, steps=16, settings=("training.learning_rate=5e-3",))
QUICK_ATTACKS = (NOBODY, "scaled, 100 times", "sign flipped, 10 times", MISLABELLED)
QUICK = Size(rounds=2, steps=1, settings=("data.rows=::10", "training.batch_size=2", "evaluation.max_new_tokens=4"))


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the table.

    Attributes:
        preset: how updates travel.
        seed: the seed of the run.
        since: the first round in which the hostile clients attack.
        attack: what they do.
        defence: what the server does.
    """

    preset: str
    seed: int
    since: int
    attack: str
    defence: str

    def config(self, size: Size) -> Config:
        """The configuration of the run."""
        return read_config(
            DEMONSTRATION,
            [
                f"lora.ranks={[*RANKS]}",
                "data.dirichlet_alpha=1.0",
                f"federation.seed={self.seed}",
                f"federation.rounds={size.rounds}",
                f"training.steps={size.steps}",
                "training.threads=1",
                f"communication.preset={self.preset}",
                'evaluation.metrics=["exact_match", "loss"]',
                f"evaluation.every={size.rounds}",
                *size.settings,
                *DEFENCES[self.defence],
            ],
        )

    def file(self, out: Path) -> Path:
        """Where its outcome is kept."""
        name = f"{self.preset} {self.seed} since {self.since} {self.attack} against {self.defence}"
        return out / "cells" / f"{''.join(c if c.isalnum() else '-' for c in name)}.json"


@dataclass(frozen=True, slots=True)
class Infiltrated(Federation):
    """A federation of which some clients upload something else than they trained."""

    attack: Attack = as_trained
    since: int = 1

    @classmethod
    def of(cls, federation: Federation, **changed: Any) -> "Infiltrated":
        """A federation, infiltrated."""
        return cls(**{each.name: getattr(federation, each.name) for each in fields(Federation)} | changed)

    def close_round(
        self, state: ServerState, updates: Sequence[ClientUpdate], *others: Any, **named: Any
    ) -> ClosedRound:
        """Replace what arrives of the hostile clients, and close the round."""
        number = state.round_number + 1
        if number >= self.since:
            draw = torch.Generator().manual_seed(derive_seed(self.seed, "attack", number))
            updates = infiltrated(updates, HOSTILE, self.attack, draw)
        return Federation.close_round(self, state, updates, *others, **named)


class Trainings:
    """Trains as the Trainer does, and keeps what came out, by all that it depends on.

    Args:
        folder: where it is kept.
        poisoned: the wrong examples of some clients, by client id.
        since: the first round in which these count.
    """

    def __init__(self, folder: Path, poisoned: Mapping[str, EncodedExamples], since: int) -> None:
        self.folder, self.poisoned, self.since = folder, poisoned, since

    def __call__(self, model: nn.Module, examples: EncodedExamples, context: TrainingContext) -> TrainingOutcome:
        """Train, or take what was trained before."""
        if context.round_number >= self.since:
            examples = self.poisoned.get(context.client_id, examples)
        parameters = {name: own for name, own in model.named_parameters() if own.requires_grad}
        told = [context.client_id, context.round_number, context.seed, repr(context.settings)]
        key = _digest(model, *told, [(each["input_ids"], each["labels"]) for each in examples])
        file = self.folder / f"{key}.safetensors"
        if file.exists():
            with torch.no_grad():
                for name, tensor in load_file(file).items():
                    parameters[name].copy_(tensor)
            return TrainingOutcome(context.steps or 0, float("nan"), 0.0)
        outcome = by_trainer(model, examples, context)
        draft = file.with_suffix(f".{os.getpid()}")
        save_file({name: own.detach().contiguous() for name, own in parameters.items()}, draft)
        draft.replace(file)
        return outcome


class Measured:
    """The metrics of a simulation, which are taken once of each global adapter."""

    def __init__(self, folder: Path, metrics: Sequence[Callable[[Any], Measurements]]) -> None:
        self.folder, self.metrics = folder, metrics

    def __call__(self, model: nn.Module, /) -> Measurements:
        """Measure, or take what was measured before."""
        file = self.folder / f"{_digest(model)}.json"
        if not file.exists():
            found = Measurements.together(metric(model) for metric in self.metrics)
            replace_file(file, json.dumps(dict(found)))
        return Measurements.own(json.loads(file.read_text()))


def _digest(model: nn.Module, *others: object) -> str:
    """A hash of all adapters of a model, and of what else is given."""
    found = hashlib.sha256(repr(others).encode())
    for name, own in model.named_parameters():
        if "lora_" in name:
            found.update(name.encode())
            found.update(own.detach().contiguous().numpy().tobytes())
    return found.hexdigest()[:32]


class Silent:
    """An observer that shows nothing."""

    def evaluating(self, round_number: int) -> None:
        """Say nothing."""

    def training(self, round_number: int, client_id: str, done: int, total: int) -> None:
        """Say nothing."""

    def closed(self, record: object) -> None:
        """Say nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """What the cells of one preset and seed share: a loaded model with its data, and the wrong examples."""

    simulation: Simulation
    poisoned: Mapping[str, EncodedExamples]

    @classmethod
    def of(cls, config: Config) -> "Stage":
        """Load all of it."""
        splits = read_splits(config)
        wrong = {
            name: mislabelled(examples) if name in HOSTILE else examples for name, examples in splits.training.items()
        }
        clients = build(config, replace(splits, training=wrong)).clients
        poisoned = {client.client_id: client.examples for client in clients if client.client_id in HOSTILE}
        return cls(build(config, splits), poisoned)

    @property
    def hostile_share(self) -> float:
        """The share of the examples that the hostile clients have."""
        counts = {client.client_id: len(client.examples) for client in self.simulation.clients}
        return sum(counts[name] for name in HOSTILE) / sum(counts.values())


def play(cell: Cell, size: Size, stage: Stage, out: Path) -> Mapping[str, Any]:
    """Play one run."""
    config = cell.config(size)
    simulation = stage.simulation
    federation = Infiltrated.of(
        simulation.federation,
        guard=guard_of(config.guard),
        robust=robust_rule(config.aggregation),
        attack=ATTACKS[cell.attack],
        since=cell.since,
    )
    poisoned = stage.poisoned if cell.attack == MISLABELLED else {}
    simulation = replace(
        simulation,
        federation=federation,
        local_training=Trainings(out / "trained", poisoned, cell.since),
        metrics=(Measured(out / "trained", simulation.metrics),),
        save_tokenizer=None,
    )
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(begun(cell, simulation, out), Path(scratch, "run"))
        records = simulation.run(RunDirectory.open(Path(scratch, "run")), Silent())
    return {
        "metrics": dict(records[-1].metrics),
        "refused": [[drop.client_id for drop in record.dropped] for record in records],
        "reasons": sorted({drop.reason for record in records for drop in record.dropped}),
        "weights": {each.client_id: each.weight for each in records[-1].clients if each.weight is not None},
        "norms": {each.client_id: each.update_norm for each in records[-1].clients},
        "hostile_share": stage.hostile_share,
        "seconds": time.perf_counter() - started,
    }


def begun(cell: Cell, simulation: Simulation, out: Path) -> Path:
    """The directory of a run that has come to the round before the attack, which all attacks have in common."""
    folder = replace(cell, attack="until then").file(out).with_suffix("")
    if not folder.exists():
        with new_directory(folder) as draft:
            facts = RunFacts(version("florist"), "florist", 1, {}, None, KeepRounds.LAST)
            directory = RunDirectory.create(draft / "run", "", facts)
            if cell.since > 1:
                replace(simulation, rounds=cell.since - 1, metrics=()).run(directory, Silent())
    return folder / "run"


def played(cells: Sequence[Cell], size: Size, out: Path) -> Mapping[Cell, Mapping[str, Any]]:
    """The outcomes of cells, each played unless it is kept."""
    for folder in ("cells", "trained"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    stages: dict[tuple[str, int], Stage] = {}
    outcomes: dict[Cell, Mapping[str, Any]] = {}
    for number, cell in enumerate(cells, start=1):
        file = cell.file(out)
        if not file.exists():
            where = cell.preset, cell.seed
            if where not in stages:
                stages = {where: Stage.of(cell.config(size))}  # one model at a time
            outcome = play(cell, size, stages[where], out)
            replace_file(file, json.dumps(outcome, indent=2) + "\n")
            print(
                f"{number}/{len(cells)} {cell.preset}, seed {cell.seed}: {cell.attack} against {cell.defence}: "
                f"{outcome['metrics']['exact_match']:.3f}, {outcome['seconds']:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        outcomes[cell] = json.loads(file.read_text())
    return outcomes


def markdown(cells: Sequence[Cell], outcomes: Mapping[Cell, Mapping[str, Any]]) -> Iterator[str]:
    """The table of exact match and loss, a row an attack and a column a defence."""
    attacks, defences = (list(dict.fromkeys(getattr(c, name) for c in cells)) for name in ("attack", "defence"))
    yield f"| hostile clients | {' | '.join(defences)} |"
    yield "|---|" + "---:|" * len(defences)
    for attack in attacks:
        row: list[str] = []
        for defence in defences:
            found = [outcomes[c]["metrics"] for c in cells if (c.attack, c.defence) == (attack, defence)]
            row.append(f"{fmean(m['exact_match'] for m in found):.3f} ({fmean(m['loss'] for m in found):.2f})")
        yield f"| {attack} | {' | '.join(row)} |"


def differences(cells: Sequence[Cell], outcomes: Mapping[Cell, Mapping[str, Any]]) -> Iterator[str]:
    """Exact match against that of no defence where nobody is hostile, paired by seed, with 95% intervals."""
    clean = {c.seed: outcomes[c]["metrics"] for c in cells if (c.attack, c.defence) == (NOBODY, "none")}
    yield "| hostile clients | defence | exact match against the clean run | lowest and highest | loss |"
    yield "|---|---|---:|---:|---:|"
    for attack, defence in dict.fromkeys((c.attack, c.defence) for c in cells):
        own = {c.seed: outcomes[c]["metrics"] for c in cells if (c.attack, c.defence) == (attack, defence)}
        if (attack, defence) == (NOBODY, "none") or not own.keys() <= clean.keys():
            continue
        match, loss = (
            estimate([found[name] - clean[seed][name] for seed, found in own.items()])
            for name in ("exact_match", "loss")
        )
        assert match is not None and loss is not None  # noqa: PT018, S101  # there is a seed
        yield (
            f"| {attack} | {defence} | {_interval(match)} | {match.lowest:+.3f}, {match.highest:+.3f} | "
            f"{_interval(loss)} |"
        )


def _interval(found: Estimate) -> str:
    spread = f" ± {found.half_width:.3f}" if found.half_width is not None and found.count > 2 else ""
    return f"{found.mean:+.3f}{spread}"


def table(args: argparse.Namespace) -> None:
    """Play what is missing of the table, and print it."""
    size = QUICK if args.quick else WHOLE
    size = replace(size, rounds=args.rounds or size.rounds, steps=args.steps or size.steps)
    out = args.out or Path("runs", "attacks-quick" if args.quick else "attacks")
    out = out / f"{size.rounds}x{size.steps}"
    torch.set_num_threads(1)
    cells = [
        Cell(args.preset, seed, args.since, attack, defence)
        for seed in args.seeds
        for attack in args.attacks or (QUICK_ATTACKS if args.quick else ATTACKS)
        for defence in args.defences
    ]
    outcomes, facts = played(cells, size, out), machine()
    shares = {cell.seed: outcomes[cell]["hostile_share"] for cell in cells}
    seeds = f"{'seeds' if len(args.seeds) > 1 else 'seed'} {', '.join(map(str, args.seeds))}"
    held = ", ".join(f"{share:.0%}" for share in dict.fromkeys(shares.values()))
    setting = (
        f"{size.rounds} rounds of {size.steps} steps, ranks {', '.join(map(str, RANKS))}, preset {args.preset}, "
        f"{seeds}; {' and '.join(HOSTILE)} are hostile from round {args.since} on, with {held} of the examples."
    )
    print(f"{said_of(facts)}.", setting, "Exact match (loss):", sep="\n\n", end="\n\n")
    print(*markdown(cells, outcomes), sep="\n")
    if len(args.seeds) > 1:
        print("", *differences(cells, outcomes), sep="\n")


def said_of(facts: Mapping[str, Any]) -> str:
    """The machine in words."""
    return (
        f"{facts['processor']}, {facts['cpus']} CPUs, load average {facts['load_average']:.1f}; Python "
        f"{facts['python']}, torch {facts['torch']}, 1 thread, float32"
    )


def drawn_updates(clients: int, modules: int, shape: tuple[int, int]) -> list[ClientUpdate]:
    """Random updates of unlike ranks: what the server does with them takes as long as with trained ones."""
    draw = torch.Generator().manual_seed(0)
    updates: list[ClientUpdate] = []
    for k in range(clients):
        rank = RANKS[k % len(RANKS)]
        factors = {
            f"layers.{number}": LoraFactor(
                torch.randn(shape[0], rank, generator=draw) * 0.8 ** torch.arange(rank),
                torch.randn(rank, shape[1], generator=draw),
            )
            for number in range(modules)
        }
        updates.append(ClientUpdate(f"client_{k:03d}", AdapterState.of(factors), 100, 1))
    return updates


def server(args: argparse.Namespace) -> None:
    """Print what each defence adds to the server's time, beside the plain aggregation in the same run."""
    torch.set_num_threads(1)
    facts, shape = machine(), tuple(args.shape)
    print(
        f"{said_of(facts)}; {args.modules} modules of {shape[0]} x {shape[1]}, ranks "
        f"{', '.join(map(str, RANKS))} in turn, tau 0.9. CPU seconds a module, the least of {args.repeats}.\n"
    )
    print("| clients | plain aggregation | guard | with cosines | inner products | a rule beside them |")
    print("|---:|---:|---:|---:|---:|---:|")
    rules = {name: robust_rule(_aggregation(name)) for name in list(DEFENCES)[2:]}
    for count in args.clients:
        updates = drawn_updates(count, args.modules, shape)
        weights = [1 / count] * count

        def moved(updates: Sequence[ClientUpdate] = updates) -> list[Moved]:
            return [Moved(update.client_id, update.num_examples, update.adapter) for update in updates]

        inner = inner_products_of(moved())
        plain = least_seconds(lambda updates=updates: Florist(EnergyThreshold(0.9))(updates), args.repeats)
        parts = [
            least_seconds(lambda moved=moved: Guard()(moved(), {}), args.repeats),
            least_seconds(lambda moved=moved: Guard(smallest_cosine=-0.5)(moved(), {}), args.repeats),
            least_seconds(lambda moved=moved: inner_products_of(moved()), args.repeats),
        ]
        own = max(
            least_seconds(lambda rule=rule, inner=inner, weights=weights: rule(inner, weights), args.repeats)
            for rule in rules.values()
            if rule is not None
        )
        cells = [f"{seconds / args.modules:.3f} ({seconds / plain:.2f})" for seconds in parts]
        print(f"| {count} | {plain / args.modules:.3f} | {' | '.join(cells)} | {own:.4f} in all |", flush=True)


def _aggregation(robust: str) -> Any:
    return read_config(DEMONSTRATION, [f"aggregation.robust={robust}"]).aggregation


def least_seconds(call: Callable[[], object], repeats: int) -> float:
    """The least CPU time of some calls, in seconds."""
    found: list[float] = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        found.append(time.process_time() - started)
    return min(found)


def main() -> None:
    """Print the table, or the server's seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    runs = parts.add_parser("table")
    runs.set_defaults(run=table)
    runs.add_argument("--out", type=Path, help="directory; by default runs/attacks, or runs/attacks-quick")
    runs.add_argument("--preset", default="plain", choices=("plain", "compact"))
    runs.add_argument("--seeds", type=int, nargs="+", default=[0])
    runs.add_argument("--attacks", nargs="+", choices=list(ATTACKS), help="by default all")
    runs.add_argument("--defences", nargs="+", default=list(DEFENCES), choices=list(DEFENCES))
    runs.add_argument("--since", type=int, default=1, help="the first round of the attack")
    runs.add_argument("--rounds", type=int)
    runs.add_argument("--steps", type=int)
    runs.add_argument("--quick", action="store_true")
    costs = parts.add_parser("server")
    costs.set_defaults(run=server)
    costs.add_argument("--clients", type=int, nargs="+", default=[8, 32, 100])
    costs.add_argument("--modules", type=int, default=2)
    costs.add_argument("--shape", type=int, nargs=2, default=(4096, 4096))
    costs.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
