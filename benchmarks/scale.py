"""Whether florist stays the same as everything grows: clients, adapters, messages and rounds.

    python benchmarks/scale.py                    # everything, some minutes
    python benchmarks/scale.py --only soak        # one part: clients, aggregate, messages, soak

1. clients: 1,000 simulated clients, 100 of them a round, 50 rounds, through the rules of a federation, with state on
   disk and compact communication with feedback at both ends. A stub trains: its updates are random factors.
2. aggregate: `florist aggregate` over 10,000 adapters, as a process.
3. messages: 100 clients with 200 modules over Flower's messages in memory: encoded, decoded, admitted and aggregated.
4. soak: 500 rounds of 20 clients, 5 a round; resident memory, open descriptors, bytes of state, bytes of
   ``rounds.jsonl`` a round, and seconds a round (and of CPU), every 50 rounds, and the slopes of all of them.

A slope is that of the least squares line through the points after the first 100 rounds, when what is kept for clients
that were away and the rank of the global adapter are what they stay. Everything is float32 on one torch thread.
"""

# ruff: noqa: PLC0415  # Flower is an extra, which only one part needs
import argparse
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.aggregate import peak_kib, save_adapter
from florist.aggregation import Florist
from florist.compression.codecs import codec_named
from florist.compression.feedback import Compression, Feedback
from florist.factors import AdapterState, LoraFactor
from florist.federation.client_residuals import ClientResiduals
from florist.federation.communication import Communication
from florist.federation.history import RunDirectory
from florist.federation.recording import LocalWork, round_record
from florist.federation.rules import Federation
from florist.federation.run_facts import RunFacts
from florist.federation.state import ServerState
from florist.ranks import Capped, EnergyThreshold
from florist.rounds import ClientUpdate
from florist.seeding import derive_seed, random_rows

COMPACT = Communication(
    upload=Compression(codec_named("int4"), EnergyThreshold(0.75), Feedback()),
    download=Compression(codec_named("int4"), EnergyThreshold(0.7), Feedback(0.5)),
)
"""As the preset of that name."""


@dataclass
class Stub:
    """A federation whose clients do not train: what they upload are random factors of falling scale.

    Attributes:
        rules: of the rounds.
        directory: of the run.
        state: after the last round.
        owed: what the clients hold back.
        seconds: of each round, everything included.
        cpu: seconds of this process in each round, which other processes disturb less.
    """

    rules: Federation
    directory: RunDirectory
    state: ServerState = field(default_factory=ServerState.initial)
    owed: ClientResiduals = field(default_factory=ClientResiduals)
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @classmethod
    def begin(cls, path: Path, clients: int, fraction: float, shapes: dict[str, tuple[int, int]]) -> "Stub":
        """A federation of so many clients, ranks 2, 4 and 8 in turn, and the directory of its run."""
        ranks = {f"client_{k:04d}": (2, 4, 8)[k % 3] for k in range(clients)}
        rules = Federation(ranks, Florist(EnergyThreshold(1.0)), shapes, 0, fraction=fraction, communication=COMPACT)
        facts = RunFacts(version("florist"), "florist", 1, {})
        return cls(rules, RunDirectory.create(path, "", facts))

    def play(self) -> None:
        """One round: every client that is asked downloads, makes an update, compresses it and holds the rest back."""
        began, used = time.perf_counter(), time.process_time()
        number, sent, work = self.state.round_number + 1, {}, {}
        for client_id in self.rules.participants(number):
            downloaded = self.rules.download(self.state, client_id)
            sent[client_id] = self.rules.sent_update(self.state, self._update(client_id), self.owed.of(client_id))
            work[client_id] = LocalWork(downloaded.nbytes, 1.0, 0.0)
        trained = time.perf_counter()
        closed = self.rules.close_round(self.state, [each.update for each in sent.values()])
        counted = {update.client_id: sent[update.client_id].owed for update in closed.counted}
        self.state, self.owed = closed.state, self.owed.followed_by(number, counted)
        aggregated = time.perf_counter()
        record = round_record(
            closed, work, {}, {"train": trained - began, "aggregate": aggregated - trained, "total": aggregated - began}
        )
        self.directory.save(self.state, record, self.owed)
        self.seconds.append(time.perf_counter() - began)
        self.cpu.append(time.process_time() - used)

    def _update(self, client_id: str) -> ClientUpdate:
        rank, number = self.rules.client_ranks[client_id], self.state.round_number + 1
        start = self.rules.start(self.state, client_id).local
        seed = derive_seed(0, "training", number, client_id)
        draw, fall = torch.Generator().manual_seed(seed), 0.7 ** torch.arange(rank)
        factors: dict[str, LoraFactor] = {}
        for name, (m, n) in self.rules.shapes.items():
            rows = start[name].A[:rank] if name in start else torch.zeros(0, n)
            A = torch.cat([rows, random_rows(seed, name, rank, n)[rows.shape[0] :]])
            factors[name] = LoraFactor(torch.randn(m, rank, generator=draw) * fall, A)
        return ClientUpdate(client_id, AdapterState.of(factors), 10, number)


def resident() -> int:
    """Resident bytes of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """The largest resident bytes of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def on_disk(folder: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def clients(folder: Path, scale: float) -> None:
    """Part 1."""
    count, rounds = max(20, int(1000 * scale)), max(4, int(50 * scale))
    shapes = {f"layers.{k}.q_proj": (64, 64) for k in range(4)}
    print(f"\nclients: {count}, a tenth of them a round, {rounds} rounds; 4 modules of 64 x 64, ranks 2, 4, 8, int4")
    stub = Stub.begin(folder / "run", count, 0.1, shapes)
    for number in range(1, rounds + 1):
        stub.play()
        if number % max(1, rounds // 10) == 0:
            recent, used = (each[-max(1, rounds // 10) :] for each in (stub.seconds, stub.cpu))
            print(
                f"round {number:3d}: {sum(recent) / len(recent):.2f} s a round ({sum(used) / len(used):.2f} s of CPU), "
                f"{len(stub.owed):4d} clients hold something back, "
                f"state {on_disk(folder / 'run' / 'state') / 1e6:.1f} MB, "
                f"current.json {(folder / 'run' / 'state' / 'current.json').stat().st_size / 1e3:.0f} KB, "
                f"resident {resident() / 1e6:.0f} MB",
                flush=True,
            )
    began = time.perf_counter()
    RunDirectory.open(folder / "run").load(ServerState.initial())
    RunDirectory.open(folder / "run").client_residuals()
    print(f"all of it read again, as a resumed run does: {time.perf_counter() - began:.2f} s")


def aggregate(folder: Path, scale: float) -> None:
    """Part 2."""
    count = max(20, int(10_000 * scale))
    began = time.perf_counter()
    paths = [str(save_adapter(folder / f"{k:05d}", 2, 64, 4, k)) for k in range(count)]
    made, size = time.perf_counter() - began, on_disk(folder)
    print(f"\naggregate: {count} adapters of 2 modules of 64 x 64, rank 4: {size / 1e6:.0f} MB, made in {made:.0f} s")
    began = time.perf_counter()
    used = peak_kib(["aggregate", *paths, "-o", str(folder / "out")])
    print(f"florist aggregate: {time.perf_counter() - began:.1f} s, peak {used / 1e3:.0f} MB", flush=True)


def messages(folder: Path, scale: float) -> None:  # noqa: ARG001  # as the other parts
    """Part 3."""
    from tests.flower.grids import MemoryGrid
    from tests.flower.participants import Light, app_of

    from florist.flower import FloristStrategy  # Flower is an extra

    count, modules, rounds = max(3, int(100 * scale)), max(4, int(200 * scale)), 3
    shapes = {f"layers.{k}.q_proj": (64, 64) for k in range(modules)}
    print(f"\nmessages: {count} clients, {modules} modules of 64 x 64, rank 8, {rounds} rounds over Flower in memory;")
    print("broadcasts are cut to rank 16 a module")
    nodes = {k: Light(f"client_{k:03d}", 8, shapes=shapes) for k in range(1, count + 1)}
    grid = MemoryGrid(app_of(nodes), {node: {} for node in nodes})
    for light in nodes.values():
        light.starts = Forgetful()
    strategy = FloristStrategy(
        Florist(Capped(EnergyThreshold(0.9), 16)), min_clients=count, wait=60.0, evaluate_on_clients=False
    )
    for number in range(1, rounds + 1):
        began = time.perf_counter()
        strategy.start(grid, num_rounds=number)
        grid.sent.clear()
        record = strategy.records[-1]
        print(
            f"round {number}: {time.perf_counter() - began:.1f} s, of it aggregation {record.seconds['aggregate']:.1f} "
            f"s; {len(record.clients)} clients count, up {record.upload_bytes / 1e6:.0f} MB, down "
            f"{record.download_bytes / 1e6:.0f} MB, peak {peak() / 1e6:.0f} MB",
            flush=True,
        )


class Forgetful(list):
    """What clients began with is not kept."""

    def append(self, _: object) -> None:
        """Nothing."""


@dataclass
class Look:
    """What is seen of the process and its run after a round."""

    round: int
    resident: float
    descriptors: float
    state: float
    line: float
    seconds: float
    cpu: float


def soak(folder: Path, scale: float) -> None:
    """Part 4."""
    rounds = max(20, int(500 * scale))
    step = max(2, rounds // 10)
    shapes = {f"layers.{k}.q_proj": (48, 48) for k in range(2)}
    print(f"\nsoak: {rounds} rounds, 20 clients, 5 a round; 2 modules of 48 x 48, ranks 2, 4, 8, int4, state on disk")
    stub = Stub.begin(folder / "run", 20, 0.25, shapes)
    looks: list[Look] = []
    lines = folder / "run" / "rounds.jsonl"
    before = 0
    for number in range(1, rounds + 1):
        stub.play()
        if number % step == 0:
            size = lines.stat().st_size
            looks.append(
                Look(
                    number,
                    resident() / 1e6,
                    len(list(Path("/proc/self/fd").iterdir())),
                    on_disk(folder / "run" / "state") / 1e3,
                    (size - before) / step / 1e3,
                    sorted(stub.seconds[-step:])[step // 2] * 1e3,
                    sum(stub.cpu[-step:]) / step * 1e3,
                )
            )
            before = size
            seen = looks[-1]
            print(
                f"round {number:3d}: resident {seen.resident:6.1f} MB, {seen.descriptors:.0f} descriptors, state "
                f"{seen.state:6.1f} KB, {seen.line:.2f} KB a line, {seen.seconds:6.1f} ms a round (median), "
                f"{seen.cpu:.1f} ms of CPU",
                flush=True,
            )
    settled = looks[len(looks) // 5 - 1 :]
    for name, unit in (
        ("resident", "MB"),
        ("descriptors", ""),
        ("state", "KB"),
        ("line", "KB a line"),
        ("seconds", "ms a round"),
        ("cpu", "ms of CPU a round"),
    ):
        slope = _slope([look.round for look in settled], [getattr(look, name) for look in settled])
        mean = sum(getattr(look, name) for look in settled) / len(settled)
        print(f"slope of {name}: {100 * slope:+.3f} {unit} in 100 rounds, {100 * slope / (mean or 1):+.2%} of the mean")


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


PARTS = {"clients": clients, "aggregate": aggregate, "messages": messages, "soak": soak}


def _asked(only: str | None) -> Iterator[str]:
    yield from PARTS if only is None else only.split(",")


def main() -> None:
    """Print what the parts measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"parts, with commas between them, of {', '.join(PARTS)}")
    parser.add_argument("--scale", type=float, default=1.0, help="a fraction of the sizes, to try it (default: 1)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}")
    print(f"torch {torch.__version__} with 1 thread, float32")
    for name in _asked(options.only):
        with tempfile.TemporaryDirectory() as scratch:
            PARTS[name](Path(scratch), options.scale)


if __name__ == "__main__":
    main()
