"""Membership attacks on the demonstration: what two attackers find out of a client, against what epsilon permits.

    python benchmarks/membership.py                    # both attackers
    python benchmarks/membership.py known              # the adversary of the definition, along the demonstration's run
    python benchmarks/membership.py shadows            # shadow runs of many small clients
    python benchmarks/membership.py known --steps 2 --runs 100 --epsilon 3    # it runs, and its numbers mean little
    python benchmarks/membership.py shadows --clients 8 --steps 2 --runs 16  # likewise

What clients train is kept in OUT/trained, by all that it depends on: a second call trains nothing. Both attackers are
in tests/membership.py.

*known* plays the demonstration with noise: four clients, four rounds. Its attacker knows what each client trained in
each round, client_2 included, the rows of A, who of the others took part, and how large the noise is. It does not know
whether client_2 was there. Draws and noise of every round are then drawn anew, hundreds of times, by the code that
plays private rounds, along the trajectory of that one run. In a run whose noise differs, clients train from another
model; but as long as the clip binds, what the attacker looks for has the length of the clip in any of them, and so its
evidence has the same distribution.

*shadows* shares examples of the demonstration out over many small clients, of which each run has a random half. They
train one round, long enough to learn their examples by heart. The attacker sees the adapter that comes out, and knows
the examples of the client that it asks for and how it would train. It plays the same federation with and without it
many times, and fits what it measures of each: the loss on the client's examples, or the inner product of the adapter
with what the client alone would train. What a client trains from the base model depends on nobody else, and is trained
once; runs differ in who takes part, and in their noise. The attacker so knows the order of each client's batches,
which is more than it would.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from tests.membership import (
    Guesses,
    KnownRound,
    Separation,
    epsilon_shown,
    evidence_of,
    likelihood_ratios,
    permitted_advantage,
    possible_advantage,
)

from benchmarks.attacks import Silent, Trainings, said_of
from benchmarks.table import machine
from florist.config import read_config, to_toml
from florist.config.building import build
from florist.config.reading import DEMONSTRATION
from florist.config.splits import Splits, read_splits
from florist.evaluation.metrics import LanguageModelLoss
from florist.factors import AdapterState
from florist.federation.closed_round import ClosedRound
from florist.federation.contributions import NOBODY, Lost
from florist.federation.private_rounds import PrivateRounds
from florist.federation.protections import Noise
from florist.federation.rules import Federation
from florist.federation.simulation import Simulation
from florist.federation.state import ServerState
from florist.privacy.accounting import Accountant, Sampling, noise_for
from florist.privacy.clipping import Change
from florist.rounds import ClientUpdate

CLIP, DELTA, TARGET = 0.5, 1e-3, "client_2"
COMMON = ("aggregation.method=linear", "aggregation.tau=1.0", "training.threads=1", 'evaluation.metrics=["loss"]')
NOISY = (f"privacy.clip={CLIP}", "privacy.epsilon=8", f"privacy.delta={DELTA}")


@dataclass(frozen=True, slots=True)
class Played:
    """A round as it was played: the state before it, and what each client trained."""

    state: ServerState
    updates: tuple[ClientUpdate, ...]


@dataclass(frozen=True, slots=True)
class Watched(PrivateRounds):
    """Private rounds that keep what the clients trained."""

    seen: list[Played] = field(default_factory=list[Played])

    @classmethod
    def of(cls, private: PrivateRounds) -> "Watched":
        """Private rounds, watched."""
        return cls(**{each.name: getattr(private, each.name) for each in fields(PrivateRounds)})

    def closed(
        self, federation: Federation, state: ServerState, updates: Sequence[ClientUpdate], lost: Lost = NOBODY
    ) -> ClosedRound:
        """Keep what was trained, and play the round."""
        self.seen.append(Played(state, tuple(updates)))
        return PrivateRounds.closed(self, federation, state, updates, lost)


def played(
    settings: Sequence[str], out: Path, share: Callable[[Splits], Splits] = lambda splits: splits
) -> tuple[Simulation, list[Played]]:
    """Play the demonstration with other settings, and return what was trained in each round.

    Args:
        settings: keys of the configuration.
        out: where what was trained is kept.
        share: shares its examples out in another way.
    """
    config = read_config(DEMONSTRATION, [*COMMON, *settings])
    simulation = build(config, share(read_splits(config)))
    watched = Watched.of(simulation.private or PrivateRounds())
    trained = out / "trained"
    trained.mkdir(parents=True, exist_ok=True)
    simulation = replace(
        simulation, private=watched, metrics=(), local_training=Trainings(trained, {}, 1), save_tokenizer=None
    )
    with tempfile.TemporaryDirectory() as scratch:
        directory = simulation.start(Path(scratch, "run"), to_toml(config), "linear", 1, Silent())
        simulation.run(directory, Silent())
    return simulation, watched.seen


def noise_of(epsilon: float, rounds: int, clients: int, asked: int, sampling: Sampling) -> Noise:
    """The noise with which so many rounds stay within an epsilon."""
    multiplier = noise_for(epsilon, rounds, delta=DELTA, clients=clients, asked=asked, sampling=sampling)
    return Noise(Accountant(multiplier, DELTA, clients, asked, sampling), epsilon)


# --- the adversary of the definition


def known(args: argparse.Namespace) -> None:
    """Print the table of the adversary that knows all but one thing."""
    simulation, rounds = played([*NOISY, f"training.steps={args.steps or 25}"], args.out)
    count, runs = len(simulation.clients), args.runs or 400
    ranks = ", ".join(str(each.lora.rank) for each in simulation.clients)
    print(
        f"\nThe demonstration: {count} clients of ranks {ranks}, {len(simulation.federation.shapes)} modules, "
        f"{len(rounds)} rounds of {args.steps or 25} steps; clip {CLIP}, delta {DELTA}. {runs} runs with {TARGET} and "
        f"{runs} without, seeds from {args.seed}.\n"
    )
    print("| draws | epsilon | noise | permitted | possible | measured (95%) | over possible | refutes epsilon below |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for sampling in args.sampling:
        fraction, instead = (1.0, -1.0) if sampling is Sampling.FIXED else (0.5, 0.0)
        rules = replace(simulation.federation, fraction=fraction)
        for epsilon in [None, *args.epsilon]:
            noise = (
                noise_of(epsilon, len(rounds), count, rules.clients_per_round, sampling)
                if epsilon is not None
                else None
            )
            private = PrivateRounds(clip=CLIP, noise=noise)
            seen = [KnownRound.of(private, rules, each.state, each.updates, TARGET, instead) for each in rounds]
            short = [each.own.norm for each in seen if noise is not None and each.own.norm < (1 - 1e-5) * CLIP]
            present = evidence_of(seen, runs, member=True, first_seed=args.seed)
            absent = evidence_of(seen, runs, member=False, first_seed=args.seed + runs)
            print(_row(noise, sampling, len(rounds), present, absent), flush=True)
            if short:
                print(f"\nThe clip does not bind in {len(short)} rounds: other trajectories tell more, or less.\n")


def _row(noise: Noise | None, sampling: Sampling, rounds: int, present: Any, absent: Any) -> str:
    found = Guesses.at(0.0, present, absent)
    low, high = found.interval()
    measured = f"{found.advantage:.3f} ({low:.3f} to {high:.3f})"
    draws = "all, another in its place" if sampling is Sampling.FIXED else "half, one more"
    shown = f"{epsilon_shown(present, absent, DELTA):.2f}"
    if noise is None:
        return f"| {draws} | none | 0 | | | {measured} | | {shown} |"
    possible, epsilon = possible_advantage(noise.accountant, rounds), noise.epsilon or 0.0
    return (
        f"| {draws} | {epsilon:g} | {noise.multiplier:.2f} | {permitted_advantage(epsilon, DELTA):.3f} "
        f"| {possible:.3f} | {measured} | {found.advantage / possible:.2f} | {shown} |"
    )


# --- by shadow runs


@dataclass(frozen=True, slots=True)
class Shadows:
    """What is seen of shadow runs.

    Attributes:
        members: (runs, clients), who was in which run.
        loss: (runs, clients), the loss on the examples of each client.
        along: (runs, clients), the inner product of the adapter with what the client alone trains.
    """

    members: np.ndarray[Any, np.dtype[np.bool_]]
    loss: np.ndarray[Any, np.dtype[np.float64]]
    along: np.ndarray[Any, np.dtype[np.float64]]


def shadows(args: argparse.Namespace) -> None:
    """Print the table of the attacker that sees the final adapter."""
    count, steps, runs, held = args.clients, args.steps or 20, args.runs or 32, args.examples
    simulation, (first, *_) = played(
        [
            "data.num_clients=4",
            "lora.ranks=8",
            f"training.steps={steps}",
            f"training.batch_size={held}",
            "federation.rounds=1",
        ],
        args.out,
        lambda splits: shared_out(splits, count, held),
    )
    print(
        f"\n{count} clients of {held} examples and rank 8, {count // 2} of them in each run, one round of {steps} "
        f"steps; {runs} runs, seeds from {args.seed}; clip {args.clip}, delta {DELTA}.\n"
    )
    print(
        "| protection | loss, members and others | seen | advantage (95%) | permitted | AUC | hits at 1% false alarms |"
    )
    print("|---|---:|---|---:|---:|---:|---:|", flush=True)
    protections: dict[str, PrivateRounds] = {"none": PrivateRounds(), "clip alone": PrivateRounds(clip=args.clip)}
    for epsilon in args.epsilon:
        noise = noise_of(epsilon, 1, count // 2, count // 2, Sampling.FIXED)
        protections[f"epsilon {epsilon:g}"] = PrivateRounds(clip=args.clip, noise=noise)
    for name, private in protections.items():
        found = shadow_runs(simulation, first, private, runs, args.seed)
        for kind, numbers in (("loss", found.loss), ("adapter", found.along)):
            apart = Separation.of(likelihood_ratios(numbers, found.members), found.members)
            epsilon = private.noise.epsilon if private.noise is not None else None
            permitted = f"{permitted_advantage(epsilon, DELTA):.3f}" if epsilon is not None else ""
            said = [f"{each[0]:.3f} ({each[1]:.3f} to {each[2]:.3f})" for each in (apart.advantage, apart.auc)]
            losses = f"{found.loss[found.members].mean():.2f}, {found.loss[~found.members].mean():.2f}"
            hits = f"{apart.hits[0]:.3f} ({apart.hits[1]:.3f} to {apart.hits[2]:.3f})"
            print(f"| {name} | {losses} | {kind} | {said[0]} | {permitted} | {said[1]} | {hits} |", flush=True)


def shared_out(splits: Splits, clients: int, held: int) -> Splits:
    """Examples of all clients together, so many for each of as many others."""
    every = [example for own in splits.training.values() for example in own]
    if clients * held > len(every):
        raise SystemExit(f"expected {len(every)} examples or fewer, got {clients} clients of {held}")
    order = np.random.default_rng(0).permutation(len(every))
    shares = {f"client_{k:03d}": order[k * held : (k + 1) * held] for k in range(clients)}
    return replace(splits, training={name: [every[k] for k in own] for name, own in shares.items()})


@dataclass(frozen=True, slots=True)
class NoiseOfRun(Noise):
    """Noise that is another in each run, where all else follows from the seed of the federation."""

    run: int = 0

    def added(
        self, federation: Federation, round_number: int, total: Change, clip: float, *, secret: bool
    ) -> tuple[Change, float]:
        """Add the noise of this run."""
        return Noise.added(self, replace(federation, seed=self.run), round_number, total, clip, secret=secret)


def shadow_runs(simulation: Simulation, first: Played, private: PrivateRounds, runs: int, seed: int) -> Shadows:
    """Play one round of a random half of the clients, many times, and measure what comes out for each client."""
    by_client = {update.client_id: update for update in first.updates}
    metrics = {each.client_id: LanguageModelLoss(each.examples, len(each.examples)) for each in simulation.clients}
    names = sorted(by_client)
    members = np.zeros((runs, len(names)), dtype=bool)
    loss, along = np.zeros(members.shape), np.zeros(members.shape)
    simulation.model.peft.eval()
    for run in range(runs):
        half = np.random.default_rng(seed + run).permutation(len(names))[: len(names) // 2]
        members[run, half] = True
        inside = [names[k] for k in sorted(half)]
        rules = replace(simulation.federation, client_ranks={k: simulation.federation.client_ranks[k] for k in inside})
        if private.noise is not None:
            private = replace(private, noise=NoiseOfRun(private.noise.accountant, run=seed + run))
        seen = private.closed(rules, first.state, [by_client[k] for k in inside]).state.global_adapter
        simulation.model.set_global(seen)
        with torch.inference_mode():
            for k, name in enumerate(names):
                loss[run, k] = metrics[name](simulation.model.peft)["loss"]
                along[run, k] = inner(seen, by_client[name].adapter)
    return Shadows(members, loss, along)


def inner(one: AdapterState, other: AdapterState) -> float:
    """The inner product of the products of two adapters, over all modules that both have."""
    return sum(
        float(((factor.B.T @ other[name].B) * (factor.A @ other[name].A.T)).sum())
        for name, factor in one.items()
        if name in other
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attackers", nargs="*", help="known, shadows, or both")
    parser.add_argument("--out", type=Path, default=Path("runs", "membership"), help="where what is trained is kept")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 3.0, 8.0])
    parser.add_argument("--runs", type=int, help="by default 400 known ones in either world, and 32 shadows")
    parser.add_argument("--steps", type=int, help="local steps of a client; by default 25, and 20 of shadows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sampling", type=Sampling, nargs="+", default=[*Sampling], help="of the known ones")
    parser.add_argument("--clients", type=int, default=20, help="of the shadow runs")
    parser.add_argument("--examples", type=int, default=4, help="of each client of the shadow runs")
    parser.add_argument("--clip", type=float, default=4.0, help="of the shadow runs")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{said_of(machine())}.")
    parts = {"known": known, "shadows": shadows}
    for name in args.attackers or parts:
        parts[name](args)


if __name__ == "__main__":
    main()
