"""A running federation: its programs, and what its operator does to them with ``flwr``."""

import signal
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import IO

from . import commands, flower
from .certificates import NodeKeys, make_node_keys
from .processes import Process, Program, ProgramError

RETRY_SECONDS = 3


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait, in seconds.

    Attributes:
        start: Until a program is ready.
        readmission: While a SuperNode that was killed is refused when it starts again. The SuperLink takes it for
            running until 60 s after its last heartbeat.
        call: For the answer to one call of ``flwr``.
        stop: Until programs that were asked to end are killed.
    """

    start: float = 90
    readmission: float = 150
    call: float = 90
    stop: float = 10


@dataclass
class Deployment:
    """A running federation; ``deploy`` and ``simulate`` make one.

    Attributes:
        directory: Keys, logs, the SuperLink's database and Flower's own folder lie there; an absolute path.
        address: ``host:port`` of the SuperLink.
        authority: The certificate by which the SuperLink is known; None where it has no TLS, in a simulation.
        patience: How long to wait for what.
        node_ids: Flower's node id of every registered SuperNode, by name.
        programs: All programs, by name, running or not.
        ports: TCP ports that are theirs, while they are down too.
    """

    directory: Path
    address: str
    authority: Path | None
    patience: Patience
    node_ids: dict[str, int] = field(default_factory=dict[str, int])
    programs: dict[str, Program] = field(default_factory=dict[str, Program])
    ports: set[int] = field(default_factory=set[int])

    @property
    def variables(self) -> dict[str, str]:
        """The environment in which to call ``flwr`` for this federation."""
        return flower.environment(self.directory / "home")

    def add_program(self, name: str, command: Sequence[str | Path], ready: Callable[[Program], bool]) -> None:
        """Add one of Flower's programs; it is not started.

        Args:
            name: A new name.
            command: The program's name and its arguments.
            ready: Whether it does its work.
        """
        words = [flower.program(str(command[0])), *map(str, command[1:])]
        self.programs[name] = Program(name, words, self.variables, self.directory / "logs" / f"{name}.log", ready)

    def add_supernode(self, name: str, node_config: Mapping[str, flower.Value], authority: Path) -> NodeKeys:
        """Make a SuperNode's keys and add its program; it is neither registered nor started.

        Args:
            name: A new name.
            node_config: What its ClientApp finds in ``context.node_config``.
            authority: The certificate by which it knows the SuperLink.

        Returns:
            Its keys; ``register`` takes the public one.
        """
        keys = make_node_keys(self.directory / "keys", name)
        port = flower.free_port(self.ports)
        self.ports.add(port)
        command = commands.supernode(self.address, authority, keys.private, flower.key_values(node_config), port)
        self.add_program(name, command, lambda program: commands.SUPERNODE_READY in program.log_since_start())
        return keys

    def register(self, name: str, public_key: Path) -> int:
        """Let a SuperNode in by its public key (``flwr supernode register``); returns its node id."""
        arguments = commands.register(public_key, flower.CONNECTION, name)
        self.node_ids[name] = int(flower.flwr(arguments, self.variables, self.patience.call)["node-id"])
        return self.node_ids[name]

    def start(self, *names: str) -> None:
        """Start programs side by side, also such as were killed, with the keys and ports they had, until all are ready.

        A registered SuperNode that was killed is refused until the SuperLink has missed its heartbeats: it is started
        again and again until then, as a service manager would.

        Raises:
            ProgramError: One ended, was not ready in time, or was refused for too long.
        """
        for name in names:
            self.programs[name].launch()
        for name in names:
            self._admit(self.programs[name])

    def _admit(self, program: Program) -> None:
        deadline = time.monotonic() + self.patience.readmission
        while True:
            try:
                return program.wait_ready(self.patience.start)
            except ProgramError:
                refused = program.name in self.node_ids and commands.SUPERNODE_REFUSED in program.log_since_start()
                if not refused or time.monotonic() > deadline:
                    raise
            time.sleep(RETRY_SECONDS)
            program.launch()

    def kill(self, name: str, command: str | None = None) -> None:
        """Kill a program and all that it started (SIGKILL), as a power cut would; returns when none of it is left.

        Args:
            name: The program.
            command: Kill only its processes of this name, for instance ``flwr-clientapp``, and do not wait.

        Raises:
            ProgramError: It has no process of that name.
        """
        if command is None:
            self.programs[name].kill()
        else:
            self.programs[name].send_signal(signal.SIGKILL, command)

    def pause(self, name: str) -> None:
        """Make a program and all that it started hang (SIGSTOP)."""
        self.programs[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let a paused program go on (SIGCONT)."""
        self.programs[name].send_signal(signal.SIGCONT)

    def processes(self, name: str) -> list[Process]:
        """The processes of a program that run now, its own first, with the memory that each holds."""
        return self.programs[name].processes()

    def pids(self, name: str) -> list[int]:
        """The numbers of ``processes``."""
        return [process.pid for process in self.processes(name)]

    def log(self, name: str) -> str:
        """What a program wrote since its last start; a SuperNode's log holds its ClientApp's lines too."""
        return self.programs[name].log_since_start()

    def answers(self) -> bool:
        """Whether the SuperLink says that it is well, over TLS where it has it."""
        if self.authority is None:
            connection = HTTPConnection(self.address, timeout=2)
        else:
            trust = ssl.create_default_context(cafile=self.authority)
            connection = HTTPSConnection(self.address, timeout=2, context=trust)
        try:
            connection.request("GET", commands.HEALTH)
            return connection.getresponse().status == HTTPStatus.OK
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def submit(
        self,
        app: Path,
        run_config: Mapping[str, flower.Value],
        federation_config: Mapping[str, flower.Value] | None = None,
    ) -> int:
        """Send an app to the SuperLink, which runs it as soon as it can: ``flwr run``.

        Args:
            app: The folder with the app's ``pyproject.toml``.
            run_config: Overrides of ``[tool.flwr.app.config]`` there; unknown keys are refused.
            federation_config: For a simulation: ``num-supernodes``, ``client-resources-num-cpus`` and the like.

        Returns:
            The run's number.
        """
        given = flower.key_values(run_config), flower.key_values(federation_config or {})
        arguments = commands.run(app, flower.CONNECTION, *given)
        return int(flower.flwr(arguments, self.variables, self.patience.call)["run-id"])

    def status(self, run_id: int) -> flower.RunStatus:
        """How a run stands: ``flwr ls``."""
        arguments = commands.status(run_id, flower.CONNECTION)
        return flower.RunStatus.read(flower.flwr(arguments, self.variables, self.patience.call)["runs"][0])

    def wait(self, run_id: int, seconds: float, output: IO[str] | None = None) -> flower.RunStatus:
        """Wait until a run ended, through deaths of the SuperLink.

        Args:
            run_id: The run's number.
            seconds: How long to wait.
            output: Where the ServerApp's log lines go as they come; None for nowhere. After a death of the SuperLink
                they come again from the first one.

        Returns:
            How it ended.

        Raises:
            TimeoutError: It did not end in time.
        """
        deadline = time.monotonic() + seconds
        status = "unknown: the SuperLink did not answer"
        while (left := deadline - time.monotonic()) > 0:
            # It ends with the run or with the connection, and costs less than asking for the status again and again.
            flower.stream_log(run_id, self.variables, left, output)
            try:
                current = self.status(run_id)
            except flower.FlowerError:
                time.sleep(RETRY_SECONDS)
                continue
            if current.finished:
                return current
            status = current.status
        raise TimeoutError(f"run {run_id} has not ended after {seconds:.0f} s; its status is {status}")

    def server_log(self, run_id: int) -> str:
        """What a run's ServerApp logged until now: ``flwr log --show``. No program's own log holds it."""
        return flower.show_log(run_id, self.variables, self.patience.call)
