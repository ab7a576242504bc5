"""Whatever depends on the version of Flower: how its programs are called, and what they say when they are ready.

A newer Flower that names an option otherwise, or speaks another protocol, is a change to this file and no other.
"""

from collections.abc import Sequence
from pathlib import Path

Words = Sequence[str | Path]

HEALTH = "/health"
"""Where the SuperLink answers over HTTP that it is well."""
SUPEREXEC_READY = "Starting Flower SuperExec"
SUPERNODE_READY = "SuperNode ID:"
"""What the programs log once they do their work."""
SUPERNODE_REFUSED = "[code: 2004]"
"""What a SuperNode logs when the SuperLink does not know its key, or believes that it still runs."""
FINISHED = "finished:"
"""How the status of a run begins that has ended."""


def superlink(address: str, database: Path, secret: Path, options: Words) -> Words:
    """The SuperLink, which keeps its state in a database and leaves its ServerApps to a superexec.

    Args:
        address: ``host:port``.
        database: of its state.
        secret: shared with the superexec.
        options: from `with_tls` or `simulated`.
    """
    host, _, port = address.partition(":")
    command = ["flower-superlink", "--host", host, "--port", port, "--database", database]
    # A ServerApp outlives the SuperLink only where a superexec of its own runs it.
    return [*command, "--isolation", "process", "--superexec-auth-secret-file", secret, *options]


def with_tls(authority: Path, certificate: Path, private_key: Path) -> Words:
    """Options of a SuperLink that has a certificate, and lets in SuperNodes whose keys are registered."""
    options = ["--enable-supernode-auth", "--ssl-ca-certfile", authority]
    return [*options, "--ssl-certfile", certificate, "--ssl-keyfile", private_key]


def simulated() -> Words:
    """Options of a SuperLink without TLS, whose runs have their SuperNodes in one Ray cluster on its machine."""
    return ["--insecure", "--simulation"]


def superexec(address: str, secret: Path, authority: Path | None) -> Words:
    """The superexec beside a SuperLink.

    Args:
        address: ``host:port`` of the SuperLink.
        secret: shared with it.
        authority: the certificate by which the SuperLink is known; None where it has none.
    """
    command = ["flower-superexec", "--runtime-api-address", address, "--superexec-auth-secret-file", secret]
    return [*command, *(["--insecure"] if authority is None else ["--root-certificates", authority])]


def supernode(address: str, authority: Path, private_key: Path, node_config: str, port: int) -> Words:
    """A SuperNode.

    Args:
        address: ``host:port`` of the SuperLink.
        authority: the certificate by which the SuperLink is known.
        private_key: its own.
        node_config: what its ClientApp finds in ``context.node_config``, as `flower.key_values` writes it.
        port: on this machine, for its ClientApps.
    """
    command = ["flower-supernode", "--superlink", address, "--root-certificates", authority]
    command += ["--auth-supernode-private-key", private_key, "--node-config", node_config]
    return [*command, "--host", "127.0.0.1", "--port", str(port)]


def register(public_key: Path, connection: str, name: str) -> Sequence[str]:
    """``flwr`` lets a SuperNode in by its public key."""
    return ["supernode", "register", str(public_key), connection, "--name", name]


def run(app: Path, connection: str, run_config: str, federation_config: str) -> Sequence[str]:
    """``flwr`` sends an app to the SuperLink; an empty text leaves out a configuration."""
    command = ["run", str(app), connection]
    command += ["--run-config", run_config] if run_config else []
    return [*command, *(["--federation-config", federation_config] if federation_config else [])]


def status(run_id: int, connection: str) -> Sequence[str]:
    """``flwr`` tells how a run stands."""
    return ["ls", connection, "--run-id", str(run_id)]


def log(run_id: int, connection: str, *, stream: bool) -> Sequence[str]:
    """``flwr`` shows what a run's ServerApp has logged; as a stream, until the run or the connection ends."""
    return ["log", str(run_id), connection, "--stream" if stream else "--show"]
