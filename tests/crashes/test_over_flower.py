"""A server over Flower that dies, is stopped or has no room goes on with its clients to the same bits.

The clients live in this process, behind a grid in memory, and go on when the server dies; the server is forked for each
of its lives, and talks to them through a pipe in Flower's own serialisation. Real SuperLinks and SuperNodes are killed
in ``tests/flower/test_faults.py``.
"""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

if sys.platform == "win32":
    pytest.skip("needs fork", allow_module_level=True)
pytest.importorskip("flwr", reason="flwr comes with the flower extra")

from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from florist.aggregation import Florist
from florist.errors import UnwritableOutputError
from florist.federation.history import RunDirectory
from florist.flower import FloristStrategy, Journal
from florist.ranks import EnergyThreshold
from tests.federation.test_killed_runs import contents
from tests.flower.grids import MemoryGrid, as_in_a_process, identified
from tests.flower.participants import Light, app_of
from tests.flower.test_residuals import communication

from .disks import drafts, files_at_most, fill, mounted
from .forks import Ended, Forked, counted

KILLS = 30
ROUNDS = 5


def clients() -> MemoryGrid:
    three = {7: Light("a", 4, 1, held_out=2), 8: Light("b", 3, 2), 9: Light("c", 2, 5)}
    return MemoryGrid(app_of(three), {node: {} for node in three})


class Remote(MemoryGrid):
    """The server's end of the pipe: the nodes are those of the process that forked it."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__(app_of({}), {})
        self._pipe = pipe

    def get_node_ids(self) -> Iterable[int]:
        self._pipe.send(None)
        return self._pipe.recv()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names: list[str] = []
        for message in messages:
            self._pipe.send(message_to_proto(message).SerializeToString())
            name, replies = self._pipe.recv()
            identified(message, name)
            self._replies[name] = [read(each) for each in replies]
            names.append(name)
        return names


def read(packed: bytes) -> Message:
    return message_from_proto(ProtoMessage.FromString(packed))


def answer(grid: MemoryGrid, asked: bytes | None) -> Any:
    if asked is None:
        return list(grid.get_node_ids())
    (name,) = grid.push_messages([read(asked)])
    return name, [message_to_proto(each).SerializeToString() for each in grid.pull_messages([name])]


def strategy(path: Path) -> FloristStrategy:
    return FloristStrategy(
        Florist(EnergyThreshold(0.9)),
        fraction=0.5,
        wait=0.1,
        min_clients=3,
        journal=Journal(path, "florist"),
        communication=communication(),
    )


def serve(pipe: Connection, path: Path) -> None:
    torch.set_num_threads(1)
    as_in_a_process()
    server = strategy(path)
    server.start(Remote(pipe), num_rounds=ROUNDS)


def live(
    grid: MemoryGrid, path: Path, logs: Path, *, seconds: float | None = None, at: int | None = None, number: int = 9
) -> tuple[Ended, float]:
    """A life of the server: until it is done, it gets a signal after some seconds, or at an operation on its files."""
    ours, theirs = multiprocessing.Pipe()

    def act() -> None:
        ours.close()
        if at is not None:
            counted(path.parent, at, lambda: os.kill(os.getpid(), number))
        if number == signal.SIGTERM:  # as Flower's own handler ends its ServerApp
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        serve(theirs, path)
        (logs / "done").touch()

    (logs / "done").unlink(missing_ok=True)
    started = time.monotonic()
    process = Forked(act, logs)
    theirs.close()
    try:
        while True:
            left = None if seconds is None else seconds - (time.monotonic() - started)
            if left is not None and (left <= 0 or not ours.poll(left)):
                process.kill(number)
                break
            ours.send(answer(grid, ours.recv()))
    except (EOFError, ConnectionError):
        pass
    finally:
        ours.close()
    return process.end(), time.monotonic() - started


def is_done(logs: Path) -> bool:
    return (logs / "done").exists()


def sums(path: Path) -> dict[str, bytes]:
    """What was added up in all rounds, and what the server holds back after them.

    Records tell of downloads, which may be others where a client was told twice what it held already.
    """
    folder = path / "state" / f"round-{ROUNDS:04d}"
    return {name: (folder / name).read_bytes() for name in ("cumulative.safetensors", "owed.safetensors")}


@pytest.fixture
def whole(tmp_path: Path) -> tuple[Path, float]:
    (tmp_path / "whole").mkdir()
    ended, seconds = live(clients(), tmp_path / "whole" / "run", tmp_path / "logs")
    assert ended.status == 0, ended.stderr
    return tmp_path / "whole" / "run", seconds


@pytest.mark.slow  # 30 lives of a server
def test_killed_at_thirty_random_moments(whole: tuple[Path, float], tmp_path: Path) -> None:
    expected, seconds = whole
    draw = random.Random(2)  # noqa: S311  # moments to die at, no secrets
    kills, runs, reached = 0, 0, set[int]()
    while kills < KILLS:
        grid, folder = clients(), tmp_path / f"killed-{runs}"
        folder.mkdir()
        path, logs = folder / "run", tmp_path / "logs"
        (logs / "done").unlink(missing_ok=True)
        while not is_done(logs):
            moment = draw.uniform(0, 0.5 * seconds) if kills < KILLS else None
            ended, _ = live(grid, path, logs, seconds=moment)
            if ended.status != 0:
                assert ended.status == -signal.SIGKILL, ended.stderr
                kills += 1
                reached.add(len(RunDirectory.open(path).records()) if path.exists() else -1)
        assert sums(path) == sums(expected)
        assert drafts(path) == []
        assert RunDirectory.open(path).records()[-1].round == ROUNDS
        runs += 1
    assert len(reached) >= 4


@pytest.mark.slow  # lives of a server
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ended_at_operations_on_its_files(whole: tuple[Path, float], tmp_path: Path, number: int) -> None:
    """SIGTERM ends a ServerApp by `SystemExit`, which unwinds; what was not a whole round is played again."""
    expected, _ = whole
    grid, path, logs = clients(), tmp_path / "ended" / "run", tmp_path / "logs"
    path.parent.mkdir()
    at, ends = 2, 0
    while True:
        ended, _ = live(grid, path, logs, at=at, number=number)
        if is_done(logs):
            break
        assert ended.status == (-signal.SIGKILL if number == signal.SIGKILL else 0), ended.stderr
        if number == signal.SIGTERM:
            assert drafts(path.parent) == []
        ends += 1
        at += 7
    assert ends >= 5
    assert sums(path) == sums(expected)
    assert drafts(path) == []


@pytest.mark.slow
def test_a_journal_without_room_is_told_in_one_line_and_gone_on_with(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    strategy(tmp_path / "whole").start(clients(), num_rounds=2)
    grid, path = clients(), tmp_path / "run"
    with files_at_most(1200), pytest.raises(UnwritableOutputError, match=r"File too large; raise the limit"):
        strategy(path).start(grid, num_rounds=2)
    assert drafts(tmp_path) == []
    strategy(path).start(grid, num_rounds=2)
    found, expected = contents(path), contents(tmp_path / "whole")
    assert [name for name in expected if found[name] != expected[name]] == []
    assert found.keys() == expected.keys()


@pytest.mark.slow  # lives of a server on a disk of its own
def test_a_disk_that_is_full_at_any_moment(whole: tuple[Path, float], tmp_path: Path) -> None:
    expected, _ = whole
    with mounted(tmp_path / "disk", 4 * 2**20) as disk:
        grid, path, logs = clients(), disk / "run", tmp_path / "logs"
        refusals = 0
        for pages in range(0, 200, 3):
            ballast = fill(disk, leave=4096 * pages)
            ended, _ = live(grid, path, logs)
            ballast.unlink()
            if is_done(logs):
                break
            assert "UnwritableOutputError" in ended.stderr, ended.stderr
            assert "No space left on device; make room" in ended.stderr
            assert drafts(disk) == []
            refusals += 1
        assert refusals >= 4
        assert sums(path) == sums(expected)
