"""Programs with all that they start: none outlives its end, however it comes."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("reads /proc", allow_module_level=True)

from examples.flower.loopback.processes import Program, ProgramError, stopped_at_the_end

from tests.flower.living import living

ROOT = Path(__file__).parents[2]
FAMILY = "sleep 300 & sleep 300 & echo ready; wait"
DETACHED = "setsid sleep 300 & echo ready; wait"


def says_ready(program: Program) -> bool:
    # A child bears its parent's name until it becomes another program.
    return "ready" in program.log_since_start() and {each.command for each in program.processes()[1:]} <= {"sleep"}


def shell(folder: Path, script: str, ready: Callable[[Program], bool] = says_ready) -> Program:
    return Program("the shell", ["/bin/bash", "-c", script], os.environ, folder / "shell.log", ready)


def started(folder: Path, script: str) -> Program:
    program = shell(folder, script)
    program.launch()
    program.wait_ready(20)
    return program


def test_the_family_is_seen(tmp_path: Path) -> None:
    program = started(tmp_path, FAMILY)
    family = program.processes()
    assert [process.command for process in family] == ["bash", "sleep", "sleep"]
    assert {process.parent for process in family[1:]} == {family[0].pid}
    program.kill()


def test_memory_is_seen(tmp_path: Path) -> None:
    program = started(
        tmp_path, f'exec {sys.executable} -c \'kept = b"x" * 2**27; print("ready"); input()\' < <(sleep 300)'
    )
    (resident,) = [process.resident_bytes for process in program.processes() if process.command.startswith("python")]
    assert 2**27 < resident < 2**28
    program.kill()


@pytest.mark.parametrize("script", [FAMILY, DETACHED])
def test_a_kill_leaves_nobody(tmp_path: Path, script: str) -> None:
    program = started(tmp_path, script)
    pids = [process.pid for process in program.processes()]
    assert len(pids) > 1
    program.kill()
    assert program.processes() == []
    assert living(pids) == []
    assert program.exit_status() == -signal.SIGKILL


def test_children_of_a_dead_leader_still_belong_to_it(tmp_path: Path) -> None:
    program = started(tmp_path, FAMILY)
    pids = [process.pid for process in program.processes()]
    os.kill(pids[0], signal.SIGKILL)
    while program.exit_status() is None:
        time.sleep(0.01)
    assert [process.pid for process in program.processes()] == pids[1:]
    program.kill()
    assert living(pids) == []


def test_a_signal_may_go_to_one_kind_of_process(tmp_path: Path) -> None:
    program = started(tmp_path, "sleep 300 & echo ready; wait; echo survived; exec tail -f /dev/null")
    program.send_signal(signal.SIGKILL, "sleep")
    while "survived" not in program.log_since_start():
        time.sleep(0.01)
    assert program.exit_status() is None
    program.kill()


def test_a_signal_to_nobody_is_refused(tmp_path: Path) -> None:
    program = started(tmp_path, FAMILY)
    with pytest.raises(
        ProgramError, match=r"the shell has no process tail to signal; it runs as \[bash \(\d+\), sleep"
    ):
        program.send_signal(signal.SIGKILL, "tail")
    program.kill()
    with pytest.raises(ProgramError, match=r"it runs as \[\]"):
        program.send_signal(signal.SIGKILL)


def test_what_runs_is_not_started_again(tmp_path: Path) -> None:
    program = started(tmp_path, FAMILY)
    with pytest.raises(ProgramError, match=r"the shell still runs as bash \(\d+\), sleep"):
        program.launch()
    program.kill()


def test_a_new_start_reads_only_its_own_log_and_clears_up_after_the_last(tmp_path: Path) -> None:
    program = started(tmp_path, "sleep 300 & echo ready $$; exit 7")
    while program.exit_status() is None:
        time.sleep(0.01)
    assert program.exit_status() == 7
    first, left = program.log_since_start(), [process.pid for process in program.processes()]
    program.launch()
    program.wait_ready(20)
    assert living(left) == []
    assert program.log_since_start() != first
    assert program.log.read_text() == first + program.log_since_start()
    program.kill()


def test_an_early_end_is_told_with_the_end_of_the_log(tmp_path: Path) -> None:
    program = shell(tmp_path, "echo no room; exit 3")
    program.launch()
    with pytest.raises(ProgramError, match=r"ended with exit status 3 before it was ready\n.*shell\.log:\n  no room"):
        program.wait_ready(20)


def test_slowness_is_told(tmp_path: Path) -> None:
    program = shell(tmp_path, "sleep 300")
    program.launch()
    with pytest.raises(ProgramError, match="was not ready within 0 s"):
        program.wait_ready(0.2)
    program.kill()


def test_an_exception_stops_all(tmp_path: Path) -> None:
    program = started(tmp_path, FAMILY)
    pids = [process.pid for process in program.processes()]
    with pytest.raises(ZeroDivisionError), stopped_at_the_end([program], 5):
        raise ZeroDivisionError
    assert living(pids) == []
    assert program.exit_status() == -signal.SIGTERM


def test_the_deaf_are_killed_when_patience_ends(tmp_path: Path) -> None:
    program = started(tmp_path, "trap '' TERM; sleep 300 & echo ready; wait")
    with stopped_at_the_end([program], 0.5):
        began = time.monotonic()
    assert 0.4 < time.monotonic() - began < 5
    assert program.exit_status() == -signal.SIGKILL


def test_a_program_may_end_its_children_itself(tmp_path: Path) -> None:
    script = "sleep 300 & child=$!; trap 'kill $child; wait; echo in good order; exit 4' TERM; echo ready; wait"
    program = started(tmp_path, script)
    with stopped_at_the_end([program], 20):
        pass
    assert program.exit_status() == 4
    assert "in good order" in program.log_since_start()


def test_programs_added_in_the_block_are_stopped_too(tmp_path: Path) -> None:
    programs: list[Program] = []
    with stopped_at_the_end(programs, 5):
        programs.append(started(tmp_path, FAMILY))
        pids = [process.pid for process in programs[0].processes()]
        assert len(pids) == 3
    assert living(pids) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_all_and_a_second_one_cannot_prevent_it(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    script = f"""
        import os, signal, sys, time
        from pathlib import Path
        from examples.flower.loopback.processes import Program, stopped_at_the_end
        signal.signal(signal.SIGINT, signal.default_int_handler)
        script = "trap '' TERM; sleep 300 & echo ready; wait"
        ready = lambda program: "ready" in program.log_since_start()
        program = Program("shell", ["/bin/bash", "-c", script], os.environ, Path({str(tmp_path / "log")!r}), ready)
        try:
            with stopped_at_the_end([program], 2):
                program.launch()
                program.wait_ready(20)
                print(*(process.pid for process in program.processes()), flush=True)
                time.sleep(300)
        except KeyboardInterrupt:
            sys.exit(130)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        pids = [int(word) for word in child.stdout.readline().split()]
        assert len(living(pids)) == 2
        child.send_signal(number)
        time.sleep(0.5)
        child.send_signal(number)
        assert child.wait(20) == status
    assert living(pids) == []


def test_signals_are_handled_as_before_afterwards(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stopped_at_the_end([], 1):
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
