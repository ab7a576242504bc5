"""SIGINT and SIGTERM: a clean end with the last whole round saved, one line that says how to go on, 130 or 143."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from florist.cli import heartbeat, main, report_work, stopping
from florist.cli.stopping import StoppedBySignal, stopped_by_signals
from florist.federation.history import RunDirectory
from tests.cli.running import Run
from tests.tiny_federation import configure, run, weights

from .disks import drafts
from .forks import Ended, Forked, counted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def config(tiny_llama: Path, toy_data: Path, tmp_path: Path) -> Path:
    return configure(tmp_path, tiny_llama, toy_data, steps=2, rounds=3)


def command(*words: object) -> Callable[[], None]:
    """A command as a forked process runs it."""

    def call() -> None:
        heartbeat.EVERY = 3600.0
        report_work.report_at_the_end = lambda _directory, _output: None
        sys.argv = ["florist", *map(str, words)]
        main()

    return call


def stopped_at(words: list[object], folder: Path, at: int | None, number: int, logs: Path) -> tuple[Ended, int]:
    """A command that gets a signal at an operation on the files of a folder; also how many operations there were."""
    file = logs.with_name("operations")
    file.write_text("0")

    def call() -> None:
        done = counted(folder, at, lambda: os.kill(os.getpid(), number))
        try:
            command(*words)()
        finally:
            file.write_text(str(done()))

    return Forked(call, logs).end(), int(file.read_text())


def last_line(ended: Ended, number: int) -> str:
    assert ended.status == 128 + number, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    return ended.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_that_is_stopped_says_how_it_goes_on(config: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "run"
    process = Forked(command("simulate", config, "-o", out, "--quiet"), tmp_path / "log")
    lines = out / "rounds.jsonl"
    process.wait_for(lambda: lines.exists() and lines.stat().st_size > 0)
    process.kill(number)
    assert last_line(process.end(), number) == f"interrupted; go on with: florist simulate --resume {out}"
    assert drafts(out) == []
    assert 1 <= len(RunDirectory.open(out).records()) < 3
    assert not (out / "adapter").exists()


@pytest.mark.slow  # plays a run for many moments
def test_a_run_that_is_stopped_at_any_operation_on_its_files_ends_as_if_it_was_not(
    config: Path, tmp_path: Path
) -> None:
    whole, folder = run(config, tmp_path / "whole"), tmp_path / "stopped"
    out, log = folder / "run", tmp_path / "log"
    folder.mkdir()
    at, stops, ended = 1, 0, None
    while ended is None or ended.status != 0:
        words: list[object] = ["--resume", out] if out.exists() else [config, "-o", out]
        number = SIGNALS[stops % 2]
        ended, _ = stopped_at(["simulate", *words, "--quiet"], folder, at, number, log)
        if ended.status == 0:
            break
        line = last_line(ended, number)
        begun = (out / "run.json").exists()
        assert line == (
            f"interrupted; go on with: florist simulate --resume {out}" if begun else "florist: interrupted"
        )
        assert drafts(folder) == []
        stops += 1
        at += 9  # later and later, so that every start gets further than the one before
    assert stops >= 8
    assert weights(out) == weights(whole.path)


@pytest.mark.slow  # combines adapters again and again
def test_a_command_without_a_state_is_stopped_at_any_operation_and_leaves_nothing(
    saved_adapters: list[Path], tmp_path: Path
) -> None:
    folder, log = tmp_path / "folder", tmp_path / "log"
    folder.mkdir()
    words: list[object] = ["aggregate", *saved_adapters, "-o", folder / "out", "--quiet"]
    ended, operations = stopped_at(words, folder, None, signal.SIGTERM, log)
    assert ended.status == 0
    assert operations > 10
    for at in range(1, operations + 1):
        for file in folder.rglob("*"):
            if file.is_file():
                file.unlink()
        if (folder / "out").exists():
            (folder / "out").rmdir()
        number = SIGNALS[at % 2]
        ended, _ = stopped_at(words, folder, at, number, log)
        assert last_line(ended, number) == "florist: interrupted", at
        assert drafts(folder) == [], at
        # What had its name already is whole.
        assert not (folder / "out").exists() or len(list((folder / "out").iterdir())) == 4, at


@pytest.mark.slow  # loads the libraries in processes
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_comparison_that_is_terminated_leaves_no_drafts(config: Path, tmp_path: Path, jobs: int) -> None:
    out = tmp_path / "out"
    words = ["compare", config, "--methods", "florist,fedit", "--seeds", "1", "--jobs", jobs, "-o", out, "--quiet"]
    process = Forked(command(*words, "--set", "federation.rounds=200"), tmp_path / "log")
    process.wait_for(lambda: len(list(out.glob("cells/*/seed-0/state/round-0001"))) == jobs)
    process.kill(signal.SIGTERM)
    line = last_line(process.end(), signal.SIGTERM)
    assert line == f"interrupted; go on with: florist compare --resume {out}"
    assert drafts(out) == []


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_at_once(tmp_path: Path, number: signal.Signals) -> None:
    def deaf() -> None:
        with stopped_by_signals():
            try:
                (tmp_path / "begun").touch()
                time.sleep(60)
            except KeyboardInterrupt:
                (tmp_path / "unwinding").touch()
                time.sleep(60)

    process = Forked(deaf, tmp_path / "log")
    process.wait_for((tmp_path / "begun").exists)
    process.kill(number)
    process.wait_for((tmp_path / "unwinding").exists)
    process.kill(number)  # what a wrapper passes on at once is the same wish
    time.sleep(stopping.ONE_WISH + 0.1)
    assert os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    started = time.monotonic()
    process.kill(signal.SIGTERM)
    assert process.end().status == 128 + signal.SIGTERM
    assert time.monotonic() - started < 20


def test_signals_are_handled_as_before_afterwards_and_what_is_ignored_stays_so() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with stopped_by_signals():
        assert [signal.getsignal(number) for number in SIGNALS] != before
        with pytest.raises(StoppedBySignal, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before[0])


def test_in_another_thread_nothing_changes() -> None:
    found: list[bool] = []

    def look() -> None:
        before = signal.getsignal(signal.SIGTERM)
        with stopped_by_signals():
            found.append(signal.getsignal(signal.SIGTERM) is before)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [True]


def test_a_refusal_in_process_is_unchanged(florist: Run, tmp_path: Path) -> None:
    assert florist("simulate", "--resume", tmp_path).returncode == 2
