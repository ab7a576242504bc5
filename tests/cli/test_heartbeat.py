"""What a log sees of a command that is silent for long, by a clock that the test turns."""

import threading
import time
from io import StringIO

import pytest
from rich.console import Console

from florist.cli import heartbeat
from florist.cli.compare_progress import CellsProgress
from florist.cli.heartbeat import EVERY, Heartbeat
from florist.cli.progress import Progress
from florist.cli.simulate_progress import RoundsProgress
from florist.comparison.planning import Cell, Entry


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(clock: Clock, *, quiet: bool = False) -> tuple[StringIO, Progress]:
    stream = StringIO()
    return stream, Progress(Console(file=stream, width=60), "loading the model", quiet=quiet, clock=clock)


def beat(progress: Progress, clock: Clock, seconds: float) -> None:
    clock.now += seconds
    assert progress.heartbeat is not None
    progress.heartbeat.beat()


def test_a_line_comes_whenever_there_was_none_for_long() -> None:
    clock = Clock()
    said: list[str] = []
    pulse = Heartbeat(lambda: "loading", said.append, clock)
    for _ in range(120):  # two minutes
        clock.now += 1
        pulse.beat()
    assert EVERY <= 15
    assert len(said) == 120 // EVERY
    assert said[0] == "0:10 loading"
    assert said[-1] == "2:00 loading"


def test_it_waits_no_longer_than_the_next_line_is_due() -> None:
    clock = Clock()
    pulse = Heartbeat(lambda: "loading", lambda _: None, clock)
    assert pulse.beat() == EVERY
    clock.now = 4.0
    pulse.said()  # something else was printed
    clock.now = EVERY
    assert pulse.beat() == 4.0


def test_a_simulation_says_loading_evaluating_and_which_client_trains() -> None:
    clock = Clock()
    stream, progress = shown(clock)
    rounds = RoundsProgress(progress)
    beat(progress, clock, 12)
    rounds.begin(0, 3)
    rounds.evaluating(0)
    beat(progress, clock, 12)
    for done in range(5):
        rounds.training(2, "client_7", done, 25)
        beat(progress, clock, 3)
    rounds.evaluating(2)
    beat(progress, clock, 100)
    assert stream.getvalue().splitlines() == [
        "0:12 loading the model",
        "0:24 rounds, 0 of 3; evaluating the base model",
        "0:36 rounds, 0 of 3; round 2: client_7 trains, 3 of 25",
        "2:19 rounds, 0 of 3; evaluating after round 2",
    ]


def test_a_comparison_says_which_run_and_client_it_is_at() -> None:
    clock = Clock()
    stream, progress = shown(clock)
    cells = CellsProgress(progress)
    cells.started(Cell(Entry("fedit"), 3))
    beat(progress, clock, 12)
    cells.training(1, "client_0", 1, 4)
    beat(progress, clock, 12)
    assert [line.partition("; ")[2] for line in stream.getvalue().splitlines()] == [
        "fedit, seed 3: loading",
        "fedit, seed 3, round 1: client_0 trains, 1 of 4",
    ]


def test_a_terminal_has_bars_and_the_quiet_have_nothing_but_how_it_stopped() -> None:
    assert Progress(Console(file=StringIO(), force_terminal=True), "loading").heartbeat is None
    stream, progress = shown(Clock(), quiet=True)
    with progress:
        assert progress.heartbeat is None
        progress.line("round 1: loss 1.000")
        progress.stopped("interrupted; go on with --resume")
    assert stream.getvalue() == "interrupted; go on with --resume\n"


def test_the_thread_speaks_while_the_command_is_in_one_long_call_and_ends_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heartbeat, "EVERY", 0.02)
    stream = StringIO()
    with Progress(Console(file=stream, width=60), "loading the model"):
        until = time.monotonic() + 10
        while "loading the model" not in stream.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
    assert "0:00 loading the model\n" in stream.getvalue()
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_the_thread_ends_where_the_command_fails() -> None:
    with pytest.raises(ValueError, match="no model"), Progress(Console(file=StringIO()), "loading"):
        raise ValueError("no model")
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}
