"""Flower's command line and programs, in an environment of their own: no telemetry, no downloads, an own home."""

import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sysconfig
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from florist.errors import how_to_install

from . import commands

Value = str | int | float | bool
CONNECTION = "loopback"
# How Flower cuts --run-config and --node-config.
KEY_VALUE = re.compile(r"""(\S+?)=('[^']*'|"[^"]*"|\S+)""")


class FlowerError(RuntimeError):
    """A call of ``flwr`` failed; the message holds the call and its output."""


@dataclass(frozen=True)
class RunStatus:
    """A run as the SuperLink describes it.

    Attributes:
        run_id: The run's number.
        status: ``pending``, ``starting``, ``running``, ``finished:completed``, ``finished:failed`` or
            ``finished:stopped``.
        details: Why it failed, as far as the SuperLink knows.
        elapsed_seconds: How long it ran.
        bytes_in: Bytes from the SuperNodes.
        bytes_out: Bytes to the SuperNodes.
    """

    run_id: int
    status: str
    details: str
    elapsed_seconds: float
    bytes_in: int
    bytes_out: int

    @classmethod
    def read(cls, run: Mapping[str, Any]) -> "RunStatus":
        """From one of the runs in the answer of ``flwr ls``."""
        traffic = run["network-traffic"]
        return cls(
            run_id=int(run["run-id"]),
            status=run["status"],
            details=run["status-details"],
            elapsed_seconds=run["elapsed"],
            bytes_in=traffic["inbound-bytes"],
            bytes_out=traffic["outbound-bytes"],
        )

    @property
    def finished(self) -> bool:
        """Whether it ended, well or not."""
        return self.status.startswith(commands.FINISHED)

    @property
    def completed(self) -> bool:
        """Whether it ended well."""
        return self.status == commands.FINISHED + "completed"


def environment(home: Path) -> dict[str, str]:
    """Variables for Flower's programs: those of this process, and none of Flower's own calls to the outside.

    Args:
        home: The folder in which Flower keeps its configuration, installed apps and databases.
    """
    # Flower starts its own programs by name: they must be those beside this very Python.
    programs = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    return os.environ | {
        "PATH": programs,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # A log that is watched for readiness must not wait in a buffer.
        "PYTHONUNBUFFERED": "1",
    }


def program(name: str) -> str:
    """The path of one of Flower's programs in this Python's environment.

    Raises:
        FileNotFoundError: Flower is not installed there.
    """
    path = Path(sysconfig.get_path("scripts"), name)
    if not path.exists():
        raise FileNotFoundError(f"expected Flower's program at {path}: {how_to_install('flower')} brings it")
    return str(path)


def write_connection(home: Path, address: str, authority: Path | None) -> None:
    """Tell ``flwr`` in ``home/config.toml`` where the SuperLink is and whose certificate it bears.

    Args:
        home: Flower's folder; made if it is not there.
        address: ``host:port`` of the SuperLink.
        authority: The authority's certificate; None for a SuperLink without TLS.
    """
    home.mkdir(parents=True, exist_ok=True)
    # Flower wants the path absolute.
    trust = "insecure = true" if authority is None else f"root-certificates = {json.dumps(str(authority.resolve()))}"
    lines = [
        "[superlink]",
        f'default = "{CONNECTION}"',
        f"[superlink.{CONNECTION}]",
        f'address = "{address}"',
        trust,
    ]
    (home / "config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def key_values(settings: Mapping[str, Value]) -> str:
    """Settings as ``--run-config`` and ``--node-config`` take them: ``name=value name=value``, the values in TOML.

    Raises:
        ValueError: A text holds both kinds of quotation marks, or a line break: Flower would cut it there.
    """
    return " ".join(f"{key}={_toml(value)}" for key, value in settings.items())


def read_key_values(text: str) -> dict[str, Value]:
    """The inverse of ``key_values``, for ``name=value name=value`` as a user types it.

    Raises:
        ValueError: It is something else.
    """
    pairs = KEY_VALUE.findall(text)
    if not pairs and text.strip():
        raise ValueError(f"expected name=value, separated by spaces, got {text!r}")
    try:
        # In quotation marks, because Flower's names are flat: a dot in them is a dot.
        return tomllib.loads("\n".join(f'"{key}" = {value}' for key, value in pairs))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"expected TOML values (a text in quotation marks), got {text!r}: {error}") from error


def _toml(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return repr(value)
    # Flower ends a value at the next quotation mark of its kind and knows no escapes.
    quote = next((quote for quote in "'\"" if quote not in value), None)
    if quote is None or not value.isprintable() or (quote == '"' and "\\" in value):
        raise ValueError(f"Flower cannot take a text with line breaks or both kinds of quotation marks: {value!r}")
    return f"{quote}{value}{quote}"


def flwr(arguments: Sequence[str], variables: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """Call ``flwr`` and read its JSON answer.

    Args:
        arguments: The subcommand and its arguments, without ``--format``.
        variables: From ``environment``.
        seconds: How long the call may take.

    Returns:
        The answer.

    Raises:
        FlowerError: It failed, took too long, or answered something else than JSON.
    """
    done = _call([*arguments, "--format", "json"], variables, seconds)
    try:
        answer = json.loads(done.stdout)
    except json.JSONDecodeError:
        answer = {}
    # A failed call may have exit status 0.
    if not answer.get("success"):
        raise _failure(done)
    return answer


def _call(arguments: Sequence[str], variables: Mapping[str, str], seconds: float) -> "subprocess.CompletedProcess[str]":
    command = [program("flwr"), *arguments]
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise FlowerError(f"{' '.join(command)}: no answer in {seconds:.0f} s") from error
    if done.returncode:
        raise _failure(done)
    return done


def _failure(done: "subprocess.CompletedProcess[str]") -> FlowerError:
    return FlowerError(f"{' '.join(done.args)} failed with exit status {done.returncode}\n{done.stdout}{done.stderr}")


def stream_log(run_id: int, variables: Mapping[str, str], seconds: float, output: IO[str] | None) -> None:
    """Pass on the ServerApp's log lines until the run or the connection ends: ``flwr log --stream``.

    Args:
        run_id: The run's number.
        variables: From ``environment``.
        seconds: When to stop, at the latest.
        output: A file of this process, for instance ``sys.stdout``; None for nowhere.
    """
    command = [program("flwr"), *commands.log(run_id, CONNECTION, stream=True)]
    sink = subprocess.DEVNULL if output is None else output
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, env=variables, stdout=sink, stderr=subprocess.DEVNULL, timeout=seconds, check=False)


def show_log(run_id: int, variables: Mapping[str, str], seconds: float) -> str:
    """The ServerApp's log lines until now: ``flwr log --show``.

    Args:
        run_id: The run's number.
        variables: From ``environment``.
        seconds: How long the call may take.

    Raises:
        FlowerError: It failed or took too long.
    """
    return _call(commands.log(run_id, CONNECTION, stream=False), variables, seconds).stdout


def free_port(taken: Collection[int] = ()) -> int:
    """A TCP port of 127.0.0.1 on which nothing listens, and none of ``taken``.

    It lies below those that the system gives to outgoing connections: it stays free while its program is down.

    Raises:
        OSError: There is none.
    """
    for port in random.Random().sample(range(20_000, 32_000), 12_000):  # noqa: S311 (no secret)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                if port not in taken:
                    return port
    raise OSError("expected a free TCP port of 127.0.0.1 between 20000 and 32000: every one is taken")
