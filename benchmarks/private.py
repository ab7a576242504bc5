"""What masked sums cost beside plain linear rounds: bytes, and CPU seconds of a client and of the server.

    python benchmarks/private.py                       # 8, 32 and 100 clients, some minutes
    python benchmarks/private.py --clients 8 --layers 2   # it runs, and its numbers mean little

All clients have the q and v projections of SmolLM2-135M (30 layers of 576 x 576 and 192 x 576) at rank 16, and all are
asked in each round; what they send is random. Rounds are played over Flower's messages in memory, with Flower's own
serialisation, and once more by the engine in one process. The first round, in which nobody has a model to be sent, is
not counted. A plain round sends B alone as well, in float32. What training takes is not counted. One torch thread.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from flwr.app import Message
from flwr.common.serde import message_to_proto
from tests.flower.grids import MemoryGrid
from tests.flower.private_participants import Trainer

from florist.aggregation import LinearRounds
from florist.federation.local_init import LocalStart
from florist.federation.private_rounds import PrivateRounds
from florist.federation.protections import Masks
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.flower import FloristStrategy, client_app
from florist.flower.messages import Assignment
from florist.flower.participant import TrainedLocally
from florist.flower.private_terms import Demands
from florist.ranks import Capped, EnergyThreshold
from florist.rounds import SavedParameters

RANK, ROUNDS = 16, 3
METHOD = LinearRounds(Capped(EnergyThreshold(0.9), RANK))


@dataclass
class Timed(Trainer):
    """A client whose training takes no time that is counted.

    Attributes:
        training: the CPU seconds that it took.
    """

    training: float = 0.0

    def train(self, start: LocalStart, saved_parameters: SavedParameters, assignment: Assignment) -> TrainedLocally:
        """Train as the stub of the tests does."""
        began = time.process_time()
        trained = super().train(start, saved_parameters, assignment)
        self.training += time.process_time() - began
        return trained


class MeasuredGrid(MemoryGrid):
    """A grid that counts the bytes of messages as Flower serialises them, and the CPU seconds of clients."""

    up = down = 0
    clients = 0.0

    def _answer(self, message: Message) -> Message:
        began = time.process_time()
        reply = super()._answer(message)
        self.clients += time.process_time() - began
        self.down += message_to_proto(message).ByteSize()
        self.up += message_to_proto(reply).ByteSize()
        return reply

    def begin(self) -> None:
        """Count from here."""
        self.up, self.down, self.clients = 0, 0, 0.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a round costs: bytes and CPU seconds of a client, CPU seconds of the server."""

    up: float
    down: float
    client: float
    server: float


def over_flower(count: int, shapes: dict[str, tuple[int, int]], private: PrivateRounds | None) -> Cost:
    """The mean cost of the rounds after the first."""
    nodes = {
        k: Timed(f"client_{k:03d}", RANK, 10 + k, shapes=shapes, saved_parameters={}, held_out=0)
        for k in range(1, count + 1)
    }
    app = client_app(lambda context: nodes[context.node_id], demands=lambda _: Demands(masked=private is not None))
    grid = MeasuredGrid(app, {node: {} for node in nodes})
    strategy = FloristStrategy(METHOD, min_clients=count, wait=60.0, evaluate_on_clients=False, private=private)
    strategy.start(grid, num_rounds=1)
    grid.begin()
    trained, began = sum(each.training for each in nodes.values()), time.process_time()
    strategy.start(grid, num_rounds=ROUNDS)
    whole = time.process_time() - began
    trained = sum(each.training for each in nodes.values()) - trained
    if not all(record.aggregated and len(record.clients) == count for record in strategy.records):
        raise RuntimeError(f"expected all {count} clients in every round, got {strategy.records[-1].dropped}")
    rounds = ROUNDS - 1
    return Cost(
        grid.up / count / rounds,
        grid.down / count / rounds,
        (grid.clients - trained) / count / rounds,
        (whole - grid.clients) / rounds,
    )


def in_one_process(count: int, shapes: dict[str, tuple[int, int]], private: PrivateRounds | None) -> float:
    """The CPU seconds of one round's end for everybody together."""
    rules = Federation({f"client_{k:03d}": RANK for k in range(count)}, METHOD, shapes, seed=0)
    state = ServerState.initial()
    updates = []
    for name in sorted(rules.client_ranks):
        client = Trainer(name, RANK, 10, shapes=shapes, saved_parameters={})
        assigned = _Assigned(seed=len(updates), rows_seed=rules.local_seed(1, name), max_rank=RANK)
        client.train(rules.start(state, name), {}, assigned)  # type: ignore[arg-type]  # what the stub reads of it
        updates.append(client.updates[1])
    began = time.process_time()
    if private is None:
        rules.close_round(state, updates)
    else:
        private.closed(rules, state, updates)
    return time.process_time() - began


@dataclass(frozen=True, slots=True)
class _Assigned:
    """What a stub reads of an assignment."""

    seed: int
    rows_seed: int
    max_rank: int
    round_number: int = 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 32, 100])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--bits", type=int, default=32)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}")
    print(f"torch {torch.__version__} with 1 thread, float32")
    shapes = {
        f"model.layers.{k}.self_attn.{kind}": (m, 576)
        for k in range(options.layers)
        for kind, m in (("q_proj", 576), ("v_proj", 192))
    }
    masked = PrivateRounds(Masks(bits=options.bits))
    print(
        f"{len(shapes)} modules, rank {RANK}, {options.bits} bits; bytes and CPU seconds of a round: plain / masked\n"
    )
    print("| clients | MB up a client | MB down a client | s a client | s the server | s in one process, everybody |")
    print("|---:|---:|---:|---:|---:|---:|", flush=True)
    for count in options.clients:
        plain, private = over_flower(count, shapes, None), over_flower(count, shapes, masked)
        alone = [in_one_process(count, shapes, each) for each in (None, masked)]
        print(
            f"| {count} | {plain.up / 1e6:.3f} / {private.up / 1e6:.3f} ({private.up / plain.up:.2f}) "
            f"| {plain.down / 1e6:.3f} / {private.down / 1e6:.3f} ({private.down / plain.down:.2f}) "
            f"| {plain.client:.3f} / {private.client:.3f} | {plain.server:.2f} / {private.server:.2f} "
            f"| {alone[0]:.2f} / {alone[1]:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
