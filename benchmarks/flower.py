"""What Flower costs beside the same federation in one process: seconds, bytes and memory, in the demonstration.

    python benchmarks/flower.py [--rounds 3] [--steps 25] [--engines process,simulation,tls]

The engines play the same rounds with the same seed, one after the other, without evaluation:

    process       florist's own engine: one process, clients in turn
    simulation    `flwr run` on a simulation: two actors of Flower's that keep the model between messages
    tls           programs of their own on the loopback: SuperLink, superexec, a SuperNode a client, TLS and keys

Seconds are of whole rounds, from the first message to the saved state, and of local training in them. Bytes are those
of the factors, as florist counts them, and for `tls` what the SuperLink counted on the wire, its
first messages included. Memory is the largest resident set of each program that was seen, looking once a second.
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flwr
import torch

from florist.config import DEMONSTRATION, read_config, to_toml
from florist.config.building import build
from florist.federation.history import RunDirectory
from florist.federation.records import RoundRecord

FLOWER = Path(__file__).parents[1] / "examples" / "flower"
sys.path.insert(0, str(FLOWER))
from loopback import deploy, partitions, simulate  # noqa: E402  # lies beside the app

CLIENTS = 4


class Silent:
    """Follows a simulation without a word."""

    def evaluating(self, round_number: int) -> None:
        """Nothing."""

    def training(self, round_number: int, client_id: str, done: int, total: int) -> None:
        """Nothing."""

    def closed(self, record: RoundRecord) -> None:
        """Nothing."""


@dataclass
class Memory:
    """The largest resident set of each program, by its name."""

    peaks: dict[str, int] = field(default_factory=dict)

    @contextlib.contextmanager
    def watching(self, federation: Any) -> Iterator[None]:
        """Look once a second as long as the block runs."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(1.0):
                for name in federation.programs:
                    for process in federation.processes(name):
                        # One SuperNode stands for all of them.
                        key = f"{name.partition('-')[0]}: {process.command}"
                        self.peaks[key] = max(self.peaks.get(key, 0), process.resident_bytes)

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def in_process(run: Path, settings: dict[str, Any]) -> None:
    """Play the rounds in this process."""
    overrides = [f"{key}={value}" for key, value in settings.items() if not key.startswith("flower.")]
    config = read_config(DEMONSTRATION, [*overrides, f"evaluation.every={settings['federation.rounds']}"])
    simulation = build(config)
    simulation.run(simulation.start(run, to_toml(config), "florist", 1, Silent()), Silent())


def over_flower(run: Path, settings: dict[str, Any], folder: Path, memory: Memory, *, tls: bool) -> tuple[int, int]:
    """Play the rounds over Flower; bytes to and from the server on the wire, 0 in a simulation."""
    started = deploy(folder, partitions(CLIENTS)) if tls else simulate(folder)
    resources = None if tls else {"num-supernodes": CLIENTS, "client-resources-num-cpus": 1}
    with started as federation, memory.watching(federation):
        number = federation.submit(FLOWER, {**settings, "flower.run": str(run)}, resources)
        status = federation.wait(number, 1800)
        if not status.completed:
            sys.exit(f"the run ended as {status.status}: {federation.server_log(number)}")
    return status.bytes_in, status.bytes_out


def show(engine: str, run: Path, wire: tuple[int, int] | None) -> None:
    """One line a round, and the bytes."""
    records = RunDirectory.open(run).records()
    for line in records:
        training = sum(client.seconds for client in line.clients)
        # Evaluation is not what is compared: in a process it cannot be left out of the last round.
        seconds = line.seconds["total"] - line.seconds["evaluate"]
        print(
            f"{engine:<11} round {line.round}: {seconds:6.1f} s, local training {training:5.1f} s summed over "
            f"{len(line.clients)} clients; up {line.upload_bytes / 1e3:.0f} KB, down {line.download_bytes / 1e3:.0f} KB"
        )
    if wire is not None and any(wire):
        factors = sum(line.upload_bytes for line in records), sum(line.download_bytes for line in records)
        print(
            f"{engine:<11} on the wire: to the server {wire[0] / 1e3:.0f} KB ({wire[0] / factors[0]:.3f} of the "
            f"factors' own), from it {wire[1] / 1e3:.0f} KB ({wire[1] / factors[1]:.3f})"
        )


RELOAD = """
import time
started = time.perf_counter()
from flwr.app import Context, RecordDict
from florist.config import DEMONSTRATION
from florist.flower.configured_client import participant_of_node
imported = time.perf_counter()

def asked(number):
    before = time.perf_counter()
    participant_of_node(DEMONSTRATION, Context(1, 1, {"partition-id": number}, RecordDict(), {}))
    return time.perf_counter() - before

print(imported - started, asked(0), asked(0), min(asked(1), asked(0), asked(1)))
"""


def reload_cost() -> None:
    """What a client pays for each message where every message has a process of its own, and where it has not."""
    program = [sys.executable, "-W", "ignore", "-c", RELOAD]
    output = subprocess.run(program, check=True, capture_output=True, text=True).stdout  # this file's own text
    imported, loaded, kept, changed = map(float, output.split())
    print(f"a new process: {imported:.1f} s to import, {loaded:.1f} s to load base and data")
    print(f"a process that stays: {kept * 1e3:.1f} ms for the client that it served last, {changed:.2f} s for another")


def same(first: Path, second: Path) -> bool:
    """Whether two runs ended with the same bits."""
    return (first / "adapter" / "adapter_model.safetensors").read_bytes() == (
        second / "adapter" / "adapter_model.safetensors"
    ).read_bytes()


def main() -> None:
    """Play the engines in turn and print what they cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--engines", default="process,simulation,tls")
    options = parser.parse_args()
    settings = {
        "federation.rounds": options.rounds,
        "training.steps": options.steps,
        "flower.evaluation": "none",
        "flower.min_clients": CLIENTS,
    }
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {os.cpu_count()} cores, 1 torch thread a client, load {os.getloadavg()[0]:.1f}")
    print(f"torch {torch.__version__}, flwr {flwr.__version__}, float32")
    print(json.dumps({"clients": CLIENTS, "rounds": options.rounds, "steps": options.steps, "batch_size": 16}))
    reload_cost()
    with tempfile.TemporaryDirectory() as temporary:
        runs: dict[str, Path] = {}
        for engine in options.engines.split(","):
            run, memory = Path(temporary, engine), Memory()
            wire = None
            if engine == "process":
                in_process(run, settings)
            else:
                wire = over_flower(run, settings, Path(temporary, f"{engine}-programs"), memory, tls=engine == "tls")
            runs[engine] = run
            show(engine, run, wire)
            for name, peak in sorted(memory.peaks.items()):
                print(f"{engine:<11} memory of {name}: {peak / 1e6:.0f} MB")
            first = next(iter(runs))
            if engine != first:
                print(
                    f"{engine:<11} final adapter {'the same bits as' if same(runs[first], run) else 'unlike'} {first}"
                )


if __name__ == "__main__":
    main()
