"""Few descriptors, and a clock that jumps."""

import resource
import shutil
import time
from pathlib import Path

import pytest

from florist.federation.history import RunDirectory
from tests.tiny_federation import configure, run

from .forks import Forked
from .test_signals import command


def narrowed(*words: object) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    command(*words)()


@pytest.mark.slow  # 200 adapters
def test_sixty_four_descriptors_are_enough_for_two_hundred_adapters(saved_adapters: list[Path], tmp_path: Path) -> None:
    many = [shutil.copytree(saved_adapters[number % 3], tmp_path / f"site-{number}") for number in range(200)]
    ended = Forked(lambda: narrowed("aggregate", *many, "-o", tmp_path / "out", "--quiet"), tmp_path / "log").end()
    assert ended.status == 0, ended.stderr


@pytest.mark.slow  # plays a run
def test_sixty_four_descriptors_are_enough_for_a_run(tiny_llama: Path, toy_data: Path, tmp_path: Path) -> None:
    config = configure(tmp_path, tiny_llama, toy_data, steps=1, rounds=12)
    ended = Forked(lambda: narrowed("simulate", config, "-o", tmp_path / "run", "--quiet"), tmp_path / "log").end()
    assert ended.status == 0, ended.stderr


@pytest.mark.slow  # plays a run
def test_a_clock_that_jumps_changes_no_duration(
    tiny_llama: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, real, calls = configure(tmp_path, tiny_llama, toy_data, steps=2, rounds=2), time.time, [0]

    def jumping() -> float:
        calls[0] += 1
        return real() + (86_400 if calls[0] % 2 else -86_400)

    monkeypatch.setattr(time, "time", jumping)
    started = time.monotonic()
    found: RunDirectory = run(config, tmp_path / "run")
    elapsed = time.monotonic() - started
    for record in found.records():
        for seconds in (*record.seconds.values(), *(client.seconds for client in record.clients)):
            assert 0 <= seconds <= elapsed
