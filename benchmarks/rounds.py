"""Whether a server stays as it is over many rounds: seconds, memory, disk and decompositions, every 25 rounds.

    python benchmarks/rounds.py [--rounds 200] [--clients 40] [--fraction 0.1]

Clients are random updates of rank 8, without models: `Federation` plays the rounds with FLoRIST at tau 0.9 and aligned
starts, downloads and starts are made for every client that a round asks, and `RunDirectory` saves each round. The
global adapter grows until it has full rank, which the small shapes have after a few rounds, and the kept broadcasts
until there are as many as `Federation.catch_up_rounds`. From then on each line should be like the one before, except
for `rounds.jsonl`, which gets a line a round.

Downloads cost one decomposition a module for all clients that missed the same rounds; those that were away for longer
than `catch_up_rounds`, and those that come for the first time, are sent the global adapter, which costs none.
"""

import argparse
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

from florist.aggregation import Florist
from florist.factors import AdapterState, LoraFactor
from florist.federation.history import RunDirectory
from florist.federation.recording import LocalWork, round_record
from florist.federation.rules import Federation
from florist.federation.run_facts import RunFacts
from florist.federation.state import ServerState
from florist.linalg import routes
from florist.ranks import EnergyThreshold
from florist.rounds import ClientUpdate

SHAPES = {f"layers.{layer}.{name}": (64, 48) for layer in range(4) for name in ("q_proj", "v_proj")}
RANK, EVERY = 8, 25


def random_update(client_id: str, round_number: int, seed: int) -> ClientUpdate:
    """An update of full rank, of which the last singular values are small."""
    draw = torch.Generator().manual_seed(seed)
    decay = torch.logspace(0, -1, RANK)
    factors = {
        name: LoraFactor(torch.randn(m, RANK, generator=draw) * decay, torch.randn(RANK, n, generator=draw))
        for name, (m, n) in SHAPES.items()
    }
    return ClientUpdate(client_id, AdapterState.of(factors), 10, round_number)


def play_round(federation: Federation, state: ServerState, run: RunDirectory) -> ServerState:
    """A round as the engine in one process plays it, but for the training."""
    number = state.round_number + 1
    updates: list[ClientUpdate] = []
    work: dict[str, LocalWork] = {}
    for client_id in federation.participants(number):
        federation.start(state, client_id)
        work[client_id] = LocalWork(federation.download(state, client_id).nbytes, 0.0, 0.0)
        updates.append(random_update(client_id, number, seed=1000 * number + len(updates)))
    closed = federation.close_round(state, updates)
    run.save(closed.state, round_record(closed, work, {}, {}))
    return closed.state


def state_bytes(state: ServerState) -> int:
    """Bytes of all tensors that a state holds on to."""
    adapters = (state.cumulative, state.continued, *state.broadcasts.values())
    tensors = [half for adapter in adapters for factor in adapter.values() for half in (factor.B, factor.A)]
    tensors += state.saved_parameters.values()
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def resident_bytes() -> int:
    """Memory that the process has now; 0 where the system does not tell (Linux does)."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


def main() -> None:
    """Play the rounds and print a line for every 25 of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--fraction", type=float, default=0.1)
    args = parser.parse_args()
    ranks = {f"client_{number:03d}": RANK for number in range(args.clients)}
    federation = Federation(ranks, Florist(EnergyThreshold(0.9)), SHAPES, seed=0, fraction=args.fraction)

    decompositions: list[None] = []
    check = routes._check  # noqa: SLF001  # every decomposition begins with it

    def counted(*given: object) -> None:
        decompositions.append(None)
        check(*given)

    routes._check = counted  # noqa: SLF001  # as above

    threads = torch.get_num_threads()
    print(f"{platform.machine()}, {os.cpu_count()} cores, {threads} torch threads, torch {version('torch')}")
    print(
        f"{args.clients} clients of rank {RANK}, {federation.clients_per_round} a round, {len(SHAPES)} modules of "
        f"{SHAPES['layers.0.q_proj']} in float32, the last {federation.catch_up_rounds} broadcasts at most"
    )
    print("round  s a round  rank  broadcasts  state KB  RSS MB  state on disk KB  rounds.jsonl KB  decompositions")
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory.create(Path(folder, "run"), "", RunFacts(version("florist"), "florist", 1, {}))
        state, begun = ServerState.initial(), time.perf_counter()
        for number in range(1, args.rounds + 1):
            state = play_round(federation, state, run)
            if number % EVERY and number != 1:
                continue
            now = time.perf_counter()
            seconds, begun = (now - begun) / (1 if number == 1 else EVERY - (number == EVERY)), now
            disk = sum(file.stat().st_size for file in (run.path / "state").rglob("*") if file.is_file())
            lines = (run.path / "rounds.jsonl").stat().st_size
            print(
                f"{number:5} {seconds:10.3f} {state.cumulative.total_rank:5} {len(state.broadcasts):11} "
                f"{state_bytes(state) / 1e3:9.0f} {resident_bytes() / 1e6:7.0f} {disk / 1e3:17.0f} {lines / 1e3:16.0f} "
                f"{len(decompositions):15}",
                flush=True,
            )


if __name__ == "__main__":
    main()
