"""Killed at any moment, a run with compression and feedback goes on to the same bits, and leaves no rest."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import jaxtyping
import pytest

from florist.federation.simulation import Simulation

from .disks import drafts
from .forks import Forked, counted, killed
from .runs import Prepared, assert_same, prepared, remember_rounds

KILLS = 100


@pytest.fixture(scope="module")
def six(tiny_llama: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(tmp_path_factory.mktemp("six"), tiny_llama, toy_data, rounds=6)


@pytest.fixture(scope="module")
def two(tiny_llama: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(tmp_path_factory.mktemp("two"), tiny_llama, toy_data, rounds=2)


def played(run: Prepared, folder: Path) -> tuple[Path, float]:
    """The run as nobody disturbs it, and the seconds that it takes."""
    (folder / "whole").mkdir()
    started = time.monotonic()
    ended = Forked(lambda: run.play(folder / "whole" / "run"), folder / "log").end()
    assert ended.status == 0, ended.stderr
    return folder / "whole" / "run", time.monotonic() - started


def has_everything(whole: Path) -> None:
    names = {file.name.partition("-by-")[0] for file in whole.rglob("*.safetensors")}
    assert names >= {"cumulative.safetensors", "broadcast.safetensors", "owed.safetensors", "owed", "owed-parameters"}


@pytest.mark.slow  # 100 kills, and 20 runs that come to their end
def test_killed_at_a_hundred_random_moments(six: Prepared, tmp_path: Path) -> None:
    whole, seconds = played(six, tmp_path)
    has_everything(whole)
    draw = random.Random(1)  # noqa: S311  # moments to die at, no secrets
    kills, reached, run = 0, set[tuple[int, int]](), 0
    while kills < KILLS:
        path = tmp_path / "killed" / "run"
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        for _ in range(KILLS):
            process = Forked(lambda: six.play(path), tmp_path / "log")  # noqa: B023  # it is over within this pass
            time.sleep(draw.uniform(0, 0.4 * seconds))
            process.kill()
            ended = process.end()
            if ended.status == 0:
                break
            assert ended.status == -signal.SIGKILL, ended.stderr
            kills += 1
            lines = path / "rounds.jsonl"
            reached.add((run, lines.read_text().count("\n") if lines.exists() else -1))
            if kills == KILLS:
                assert Forked(lambda: six.play(path), tmp_path / "log").end().status == 0  # noqa: B023
                break
        assert_same(path, whole)
        assert drafts(path) == []
        run += 1
    assert {rounds for _, rounds in reached} >= {0, 1, 2, 3, 4, 5, 6}
    assert run >= 2  # how many runs come to their end before the last kill is up to how busy the machine is


def dead_at(run: Prepared, folder: Path, at: int | None) -> tuple[int, int]:
    """Play a run that may be killed at an operation on files: its exit status, and how many operations there were."""
    path = folder / "run"

    def live() -> None:
        remember_rounds(run.remembered)
        done = counted(folder, at, killed)
        run.play(path)
        (folder.parent / "operations").write_text(str(done()))

    ended = Forked(live, folder.parent / "log").end()
    assert ended.status in {0, -signal.SIGKILL}, ended.stderr
    return ended.status, int((folder.parent / "operations").read_text()) if ended.status == 0 else 0


def by_heart(run: Prepared, path: Path) -> None:
    """Learn the rounds of a run, which is about files from here on."""
    monkey = pytest.MonkeyPatch()
    monkey.setattr(Simulation, "_round", Simulation._round)  # to be taken back
    try:
        remember_rounds(run.remembered)
        run.play(path)
    finally:
        monkey.undo()
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.slow  # two short runs for every operation on a file
def test_killed_before_every_operation_on_a_file(two: Prepared, tmp_path: Path) -> None:
    """Nothing can happen to the files between two operations that this does not try."""
    by_heart(two, tmp_path / "heart")
    whole, _ = played(two, tmp_path)
    folder = tmp_path / "killed"
    folder.mkdir()
    _, operations = dead_at(two, folder, None)
    assert operations > 100
    assert_same(folder / "run", whole)
    for number in range(1, operations + 1):
        shutil.rmtree(folder)
        folder.mkdir()
        status, _ = dead_at(two, folder, number)
        assert status == -signal.SIGKILL, number
        status, _ = dead_at(two, folder, None)
        assert status == 0, number
        try:
            assert_same(folder / "run", whole)
            assert drafts(folder / "run") == []
        except AssertionError as wrong:
            raise AssertionError(f"killed at operation {number} of {operations}: {wrong}") from wrong


def test_killed_as_a_round_becomes_the_last(two: Prepared, tmp_path: Path) -> None:
    """The quick part of the above: around the replacement of current.json."""
    whole, _ = played(two, tmp_path)
    for when in ("before", "after"):
        path = tmp_path / when / "run"
        path.parent.mkdir()

        def live(path: Path = path, when: str = when) -> None:
            rename, flush = os.replace, os.fsync

            def replace(source: object, target: object) -> None:
                of_a_round = str(target).endswith("current.json") and (path / "state" / "round-0001").exists()
                if of_a_round and when == "before":
                    killed()
                rename(source, target)  # type: ignore[arg-type]
                if of_a_round:
                    killed()

            os.replace, os.fsync = replace, flush
            two.play(path)

        assert Forked(live, tmp_path / "log").end().status == -signal.SIGKILL
        assert Forked(lambda path=path: two.play(path), tmp_path / "log").end().status == 0
        assert_same(path, whole)
