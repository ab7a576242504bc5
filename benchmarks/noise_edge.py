"""What `noise_edge` misses, and three ways to mend it: the edge of the noise of all rounds, rows kept, a lower edge.

    python benchmarks/noise_edge.py             # the demonstration with 200 clients, three seeds; some minutes

The edge of florist judges each round by itself, and forgets what is below it. Here what is below stays with the server
and joins the next round (feedback), and the edge is that of all the noise in it. For noise whose rows are independent
Gaussian vectors of covariance C, the largest singular value of m of them is at most about ``sqrt(m ||C||) +
sqrt(trace C)`` (Chevet's inequality), which for one round is florist's edge. C grows by ``deviation^2 A^T A`` in each
round, and loses the directions that were sent.

It is an experiment, with dense matrices, of federations with small modules; florist has none of it.
"""

import argparse
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from torch import Tensor

from benchmarks.epsilon import SETTINGS, Cell, config_of, interval, play, prepared
from benchmarks.table import machine
from benchmarks.together import Together
from florist import AdapterState, ClientUpdate, EnergyThreshold, LinearRounds, LoraFactor
from florist.config.building import build
from florist.federation.local_init import FRESH_ROW_NORM, Agreed, LocalStart
from florist.federation.state import ServerState
from florist.rounds import Broadcast, ClientWork
from florist.seeding import random_rows


@dataclass
class OverRounds:
    """Linear rounds that send what stands above the noise of all rounds so far.

    Attributes:
        multiple: how many edges high a direction has to be.
        deviation: that of the noise of the round that is aggregated next.
        due: what was not sent so far, with its noise, by module.
        covariance: C, by module.
    """

    multiple: float
    deviation: float = 0.0
    due: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    covariance: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    whole: LinearRounds = field(default_factory=lambda: LinearRounds(EnergyThreshold(1.0)))

    def at(self, deviation: float) -> "OverRounds":
        """The same, for a round whose noise has this deviation."""
        self.deviation = deviation
        return self

    @property
    def work(self) -> ClientWork:
        """What linear rounds ask for."""
        return self.whole.work

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        """Send the directions above the edge of the one update that a private round has: the noisy mean."""
        (update,) = updates
        sent = {name: self._sent(name, factor) for name, factor in update.adapter.items()}
        return self.whole([replace(update, adapter=AdapterState.of(sent))])

    def _sent(self, name: str, factor: LoraFactor) -> LoraFactor:
        B, A = factor.B.double(), factor.A.double()
        out_features, in_features = B.shape[0], A.shape[1]
        rows = A / torch.linalg.vector_norm(A, dim=1, keepdim=True)
        C = self.covariance.get(name, torch.zeros(in_features, in_features, dtype=torch.float64))
        C = C + self.deviation**2 * rows.T @ rows
        due = B @ A + self.due.get(name, torch.zeros(out_features, in_features, dtype=torch.float64))
        U, S, Vh = torch.linalg.svd(due, full_matrices=False)
        edge = math.sqrt(out_features * float(torch.linalg.eigvalsh(C)[-1])) + math.sqrt(float(C.trace()))
        rank = int((self.multiple * edge < S).sum())
        beside = torch.eye(in_features, dtype=torch.float64) - Vh[:rank].T @ Vh[:rank]
        self.due[name], self.covariance[name] = due - (U[:, :rank] * S[:rank]) @ Vh[:rank], beside @ C @ beside
        return LoraFactor(U[:, :rank] * S[:rank], Vh[:rank]).to(dtype=torch.float32)


@dataclass
class KeptRows:
    """Rows of A that stay in one span: those of the last broadcast first, then as many of the rows before.

    Each round then adds to what the last one said of the same directions, where random rows ask others every time.
    """

    before: dict[tuple[str, int], Tensor] = field(default_factory=dict[tuple[str, int], Tensor])

    def patched(self) -> AbstractContextManager[Any]:
        """Let every client of this process start from them."""
        rows_of = self._rows

        def start(agreed: Agreed, state: ServerState, rank: int, /) -> LocalStart:
            rows = {name: rows_of(agreed, state, name)[:rank] for name in agreed.shapes}
            zeros = {name: torch.zeros(agreed.shapes[name][0], A.shape[0]) for name, A in rows.items()}
            return LocalStart(state.cumulative, AdapterState.of({n: LoraFactor(zeros[n], rows[n]) for n in rows}))

        return patch.object(Agreed, "__call__", start)

    def _rows(self, agreed: Agreed, state: ServerState, name: str) -> Tensor:
        key = name, state.round_number
        if key not in self.before:
            drawn = random_rows(agreed.seed, name, agreed.max_rank, agreed.shapes[name][1])
            old = self.before.get((name, state.round_number - 1), drawn).double()
            last = state.broadcasts.last
            new = last[name].A.double() if name in last else old[:0]
            first = torch.linalg.qr(new.T).Q.T
            rest = torch.linalg.svd(old - old @ first.T @ first, full_matrices=False).Vh[: old.shape[0] - len(first)]
            self.before[key] = (FRESH_ROW_NORM * torch.cat([first, rest])).to(drawn.dtype)
        return self.before[key]


@dataclass(frozen=True, slots=True)
class Way:
    """A way of the table.

    Attributes:
        name: what the table calls it.
        multiple: that of the edge over rounds; None for what florist does.
        kept_rows: whether the rows of A stay.
        line: the line of `epsilon.py` that it begins with.
    """

    name: str
    multiple: float | None = None
    kept_rows: bool = False
    line: str = "linear, noise_edge"


WAYS = (
    Way("tau 0.9", line="linear, tau 0.9"),
    Way("`noise_edge`: 1.1 edges of one round"),
    Way("feedback, 1.1 edges of all rounds", 1.1),
    Way("the same, and rows of A that stay", 1.1, kept_rows=True),
    Way("the same, 0.9 edges", 0.9, kept_rows=True),
)


def outcome(way: Way, epsilon: float, seed: int, rounds: int, own: Sequence[str]) -> dict[str, Any]:
    """Play one run."""
    setting = SETTINGS["demonstration"]
    cell = Cell(way.line, epsilon, seed, setting.chosen["linear"], rounds)
    simulation = build(config_of(cell, setting, own), None)
    if way.multiple is not None and simulation.private is not None:
        private = replace(simulation.private, aggregator_at=OverRounds(way.multiple).at)
        simulation = replace(simulation, private=private)
    with KeptRows().patched() if way.kept_rows else nullcontext():
        return play(simulation, Together(simulation), chosen=True)


def table(epsilons: Sequence[float], seeds: Sequence[int], rounds: Sequence[int], own: Sequence[str]) -> Iterator[str]:
    """The table, a row a way."""
    yield "| epsilon | rounds | | loss | rank | KB down |"
    yield "|---:|---:|---|---:|---:|---:|"
    for epsilon in epsilons:
        for count in rounds:
            for way in WAYS:
                found = [outcome(way, epsilon, seed, count, own) for seed in seeds]
                loss = interval([each["metrics"]["loss"] for each in found], ".3f")
                rank, down = fmean(each["total_rank"] for each in found), fmean(each["down_bytes"] for each in found)
                yield f"| {epsilon:g} | {count} | {way.name} | {loss} | {rank:.1f} | {down / 1e3:.1f} |"


def main() -> None:
    """Play all, and print the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs", "epsilon"))
    parser.add_argument("--epsilons", type=float, nargs="+", default=[8.0, 3.0])
    parser.add_argument("--rounds", type=int, nargs="+", default=[12, 36])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("absl").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    args.out.mkdir(parents=True, exist_ok=True)
    own = prepared("demonstration", args.out, None, None)
    facts = machine()
    print(f"{facts['processor']}; Python {facts['python']}, torch {facts['torch']}, 1 thread, float32\n")
    for line in table(args.epsilons, args.seeds, args.rounds, own):
        print(line, flush=True)


if __name__ == "__main__":
    main()
