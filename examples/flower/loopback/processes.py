"""Long-running programs with everything that they start themselves: watched, killed and stopped as one.

Flower's programs start others (a SuperNode its superexec, a superexec the apps) and do not take them along when they
are killed. So every program leads a session of its own, and what belongs to it is read from ``/proc``: the processes of
the session, and what descends from them in sessions of their own. Linux only.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
POLL_SECONDS = 0.1
COMMAND_LENGTH = 15


class ProgramError(RuntimeError):
    """A program ended, or was not ready in time; the message holds the end of its log."""


@dataclass(frozen=True)
class Process:
    """One running process.

    Attributes:
        pid: Its number.
        parent: The number of its parent.
        session: The number of the session's leader.
        started: Clock ticks since the machine started: with ``pid``, it names the process for good.
        command: The first ``COMMAND_LENGTH`` characters of the program's name.
        resident_bytes: Memory that it holds at this moment, shared pages counted in every process.
    """

    pid: int
    parent: int
    session: int
    started: int
    command: str
    resident_bytes: int


@dataclass
class Program:
    """A program that can be started, killed and started again; its log is one file, appended to at every start.

    Attributes:
        name: What messages call it.
        command: The program and its arguments.
        environment: All variables that it sees.
        log: Where its standard output and standard error go, and those of what it starts.
        ready: Whether it does its work; asked ten times a second while it starts.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    ready: Callable[["Program"], bool]
    _leader: "subprocess.Popen[bytes] | None" = field(default=None, init=False)
    _started: int = field(default=0, init=False)
    _known: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]], init=False)
    _log_start: int = field(default=0, init=False)

    def launch(self) -> None:
        """Start the program and do not wait for it; what a dead one left behind is killed first.

        Raises:
            ProgramError: It still runs.
        """
        if self.exit_status() is not None:
            self.kill()
        if running := self.processes():
            raise ProgramError(
                f"{self.name} still runs as {_listed(running)}: kill or stop it before starting it again"
            )
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._leader = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # It can be read even if it ended already: its entry stays until it is polled.
        self._started = _start_time(self._leader.pid)
        self._known = set()

    def wait_ready(self, seconds: float) -> None:
        """Wait until the program that was launched is ready, for at most ``seconds``.

        Raises:
            ProgramError: It ended first, or time was up.
        """
        deadline = time.monotonic() + seconds
        while not self.ready(self):
            if (status := self.exit_status()) is not None:
                raise ProgramError(
                    f"{self.name} ended with exit status {status} before it was ready\n{self.log_tail()}"
                )
            if time.monotonic() > deadline:
                raise ProgramError(f"{self.name} runs but was not ready within {seconds:.0f} s\n{self.log_tail()}")
            time.sleep(POLL_SECONDS)

    def exit_status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs or where it was never started."""
        return None if self._leader is None else self._leader.poll()

    def processes(self) -> list[Process]:
        """The program's processes that run now, its own first; zombies do not count."""
        if self._leader is None:
            return []
        self._leader.poll()
        family = _family(_running(), (self._leader.pid, self._started), self._known)
        self._known |= {(process.pid, process.started) for process in family}
        return family

    def send_signal(self, number: signal.Signals, command: str | None = None) -> None:
        """Send a signal to every process of the program, or only to those whose ``command`` is this one.

        Raises:
            ProgramError: There is no such process.
        """
        family = self.processes()
        # The kernel keeps that many characters of a name.
        chosen = [process for process in family if command is None or process.command == command[:COMMAND_LENGTH]]
        if not chosen:
            raise ProgramError(f"{self.name} has no process {command or ''} to signal; it runs as [{_listed(family)}]")
        for process in chosen:
            _send(process, number)

    def terminate(self) -> None:
        """Ask the program to end and do not wait for it: itself alone, as it may end its children in good order."""
        if self.exit_status() is None and (family := self.processes()):
            _send(family[0], signal.SIGTERM)

    def kill(self) -> None:
        """Kill every process of the program, as a power cut would, and return when none is left."""
        # One that is just being started may escape a single pass.
        while family := self.processes():
            for process in family:
                _send(process, signal.SIGKILL)
            time.sleep(POLL_SECONDS / 10)
        if self._leader is not None:
            self._leader.wait()

    def log_since_start(self) -> str:
        """What the program, and what it started, wrote since its last start."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def log_tail(self, lines: int = 20) -> str:
        """The last lines since its last start, under the name of the log file."""
        tail = self.log_since_start().splitlines()[-lines:]
        return "\n".join([f"The end of {self.log}:", *(f"  {line}" for line in tail)])


@contextlib.contextmanager
def stopped_at_the_end(programs: Collection[Program], patience_seconds: float) -> Generator[None]:
    """Whatever ends the block (its end, an exception, SIGINT, SIGTERM), none of the programs survives it.

    They are asked to end (SIGTERM), all at once, and what is left after ``patience_seconds`` is killed. Further signals
    do not interrupt the stopping. Only in the main thread, as only there Python handles signals.

    Args:
        programs: Looked at when the block ends: more may come while it runs.
        patience_seconds: How long they may take together.

    Raises:
        KeyboardInterrupt: SIGINT came.
        SystemExit: SIGTERM came; the status is 143, as a shell reports it.
    """
    ending = False

    def end(number: int, _frame: FrameType | None) -> None:
        nonlocal ending
        if not ending:
            ending = True
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # Two of them, because a signal may come on the way into the first.
        try:
            yield
        finally:
            ending = True
    finally:
        _stop(programs, patience_seconds)
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(programs: Collection[Program], patience_seconds: float) -> None:
    deadline = time.monotonic() + patience_seconds
    running = [program for program in programs if program.processes()]
    for program in running:
        program.terminate()
    while time.monotonic() < deadline and any(program.exit_status() is None for program in running):
        time.sleep(POLL_SECONDS)
    for program in running:
        program.kill()


def _running() -> list[Process]:
    """Every running process of the machine that may be looked at."""
    found = (_read(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [process for process in found if process is not None]


def _stat(pid: int) -> tuple[str, list[str]]:
    """The program's name and the fields after it, from the state on."""
    text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    # The name stands in brackets and may hold anything, brackets and spaces too: fields count from the last one.
    head, _, tail = text.rpartition(")")
    return head.partition("(")[2], tail.split()


def _start_time(pid: int) -> int:
    return int(_stat(pid)[1][19])


def _read(pid: int) -> Process | None:
    try:
        command, fields = _stat(pid)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    if fields[0] in "ZX":
        return None
    return Process(
        pid=pid,
        parent=int(fields[1]),
        session=int(fields[3]),
        started=int(fields[19]),
        command=command,
        resident_bytes=int(fields[21]) * PAGE_BYTES,
    )


def _family(running: Iterable[Process], leader: tuple[int, int], known: set[tuple[int, int]]) -> list[Process]:
    """Processes of the leader's session, those seen earlier, and all their descendants; the leader first.

    A process's number is not given away while it is also a session's. So where a stranger has the leader's number, the
    session is gone.
    """
    rest = list(running)
    pid, started = leader
    session = None if any(process.pid == pid and process.started != started for process in rest) else pid
    family: list[Process] = []
    pids: set[int] = set()
    while found := [
        process
        for process in rest
        if process.session == session or process.parent in pids or (process.pid, process.started) in known
    ]:
        family += found
        pids |= {process.pid for process in found}
        rest = [process for process in rest if process.pid not in pids]
    return sorted(family, key=lambda process: (process.pid != pid, process.started, process.pid))


def _send(process: Process, number: signal.Signals) -> None:
    # Between reading and sending, the process may have ended and its number gone to another.
    current = _read(process.pid)
    if current is not None and current.started == process.started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _listed(processes: Iterable[Process]) -> str:
    return ", ".join(f"{process.command} ({process.pid})" for process in processes)
