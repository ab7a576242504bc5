"""Start a federation of separate programs, or a simulated one, and stop all of it at the end."""

import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import commands, flower
from .certificates import issue_server_certificate, write_private
from .deployment import Deployment, Patience
from .processes import stopped_at_the_end

SUPERLINK = "superlink"
SUPEREXEC = "superexec"


def partitions(count: int) -> list[dict[str, flower.Value]]:
    """Node configurations by Flower's convention: ``partition-id`` from 0, and ``num-partitions``."""
    return [{"partition-id": number, "num-partitions": count} for number in range(count)]


@contextmanager
def deploy(
    directory: Path,
    node_configs: Sequence[Mapping[str, flower.Value]],
    *,
    patience: Patience | None = None,
    report: Callable[[str], object] = lambda _sentence: None,
) -> Generator[Deployment]:
    """Start a federation as between sites: TLS, node authentication, each part a program of its own.

    The programs are ``superlink``, ``superexec`` and ``supernode-0`` to ``supernode-{n - 1}``. When the block ends,
    however it ends, all of them are stopped.

    Args:
        directory: For keys, logs and databases; without ``keys`` and ``logs`` of an earlier one.
        node_configs: What each SuperNode's ClientApp finds in ``context.node_config``, one mapping a SuperNode.
        patience: How long to wait for what.
        report: Called with a sentence on each step, before it is taken.

    Yields:
        The federation, all its SuperNodes connected.

    Raises:
        FileExistsError: The directory holds an earlier federation.
        ProgramError: A program did not start.
        FlowerError: A SuperNode could not be registered.
    """
    directory = directory.resolve()
    _make_folders(directory)
    report(f"The keys and the SuperLink's certificate go to {directory / 'keys'}, the logs to {directory / 'logs'}.")
    server = issue_server_certificate(directory / "keys")
    federation = _federation(directory, server.authority, patience)
    _add_superlink(federation, commands.with_tls(server.authority, server.certificate, server.private_key))
    nodes = {f"supernode-{number}": config for number, config in enumerate(node_configs)}
    keys = {name: federation.add_supernode(name, config, server.authority) for name, config in nodes.items()}
    with stopped_at_the_end(federation.programs.values(), federation.patience.stop):
        report(f"Starting the SuperLink on https://{federation.address} and the superexec that runs its ServerApps.")
        federation.start(SUPERLINK, SUPEREXEC)
        report(f"Registering the public keys of {len(nodes)} SuperNodes.")
        for name in nodes:
            federation.register(name, keys[name].public)
        report(f"Starting {len(nodes)} SuperNodes.")
        federation.start(*nodes)
        yield federation


@contextmanager
def simulate(
    directory: Path,
    *,
    patience: Patience | None = None,
    report: Callable[[str], object] = lambda _sentence: None,
) -> Generator[Deployment]:
    """Start a SuperLink whose runs have their SuperNodes in one Ray cluster on this machine, without TLS.

    ``flwr run APP local`` starts such a SuperLink by itself, on one port for the whole machine, and leaves it running.
    This one has a port of its own and is stopped, with its superexec, when the block ends.

    Args:
        directory: For logs and databases; without ``logs`` of an earlier one.
        patience: How long to wait for what.
        report: Called with a sentence on each step, before it is taken.

    Yields:
        The federation; ``submit`` takes the number of SuperNodes in ``federation_config``.

    Raises:
        FileExistsError: The directory holds an earlier federation.
        ProgramError: A program did not start.
    """
    directory = directory.resolve()
    _make_folders(directory)
    federation = _federation(directory, None, patience)
    _add_superlink(federation, commands.simulated())
    with stopped_at_the_end(federation.programs.values(), federation.patience.stop):
        report(f"Starting the SuperLink on http://{federation.address}; the logs go to {directory / 'logs'}.")
        federation.start(SUPERLINK, SUPEREXEC)
        yield federation


def _make_folders(directory: Path) -> None:
    for name in ("keys", "logs"):
        (directory / name).mkdir(parents=True)


def _federation(directory: Path, authority: Path | None, patience: Patience | None) -> Deployment:
    port = flower.free_port()
    address = f"127.0.0.1:{port}"
    flower.write_connection(directory / "home", address, authority)
    return Deployment(directory, address, authority, patience or Patience(), ports={port})


def _add_superlink(federation: Deployment, options: commands.Words) -> None:
    """Add a SuperLink and the superexec that runs its ServerApps, with a secret between them."""
    secret = federation.directory / "keys" / "superexec.secret"
    write_private(secret, secrets.token_bytes(32))
    database = federation.directory / "state.db"
    federation.add_program(
        SUPERLINK,
        commands.superlink(federation.address, database, secret, options),
        lambda _: federation.answers(),
    )
    federation.add_program(
        SUPEREXEC,
        commands.superexec(federation.address, secret, federation.authority),
        lambda program: commands.SUPEREXEC_READY in program.log_since_start(),
    )
