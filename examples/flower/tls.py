"""A federation on one machine as between sites: TLS, node authentication, a program for each part.

    python examples/flower/tls.py --supernodes 3 --run-config 'name=value name=value'

Starts the SuperLink, a superexec and the SuperNodes, runs the app, shows what its ServerApp logs, and stops everything.
The exit status is 0 if the run completed and 1 if it did not.
"""

import argparse
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from loopback import FlowerError, ProgramError, deploy, partitions, read_key_values


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the app in a federation of its own; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not (options.app / "pyproject.toml").exists():
        parser.error(f"expected a Flower app in {options.app}: there is no pyproject.toml")
    directory = options.directory or Path(tempfile.mkdtemp(prefix="florist-flower-"))
    try:
        with deploy(directory, partitions(options.supernodes), report=_say) as federation:
            run_id = federation.submit(options.app, {**_count(options.app, options.supernodes), **options.run_config})
            _say(f"Run {run_id} is submitted; what its ServerApp logs follows.")
            _say("It is silent while clients train: every message starts a process there, which loads the model anew.")
            status = federation.wait(run_id, options.seconds, sys.stdout)
            _say(f"Run {run_id} is {status.status} after {status.elapsed_seconds:.0f} s.")
            if not status.completed:
                _say(f"{status.details} Look at {federation.directory / 'logs'}.")
            _say("Stopping everything.")
    except (FileExistsError, FlowerError, ProgramError, TimeoutError) as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _say("Interrupted; everything is stopped.")
        return 130
    return 0 if status.completed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--supernodes", type=int, default=3, help="how many SuperNodes (default: 3)")
    parser.add_argument("--directory", type=Path, help="for keys, logs and databases (default: a new temporary one)")
    parser.add_argument(
        "--app", type=Path, default=Path(__file__).parent, help="the folder with the app's pyproject.toml"
    )
    parser.add_argument(
        "--run-config",
        type=_run_config,
        default={},
        help="overrides of [tool.flwr.app.config] there: name=value, TOML values, separated by spaces",
    )
    parser.add_argument("--seconds", type=float, default=3600, help="how long the run may take (default: 3600)")
    return parser


def _count(app: Path, supernodes: int) -> dict[str, int]:
    """That the run waits for as many clients as there will be, where the app may be told so."""
    keys = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"].get("config", {})
    return {"flower.min_clients": supernodes} if "flower.min_clients" in keys else {}


def _run_config(text: str) -> dict[str, str | int | float | bool]:
    try:
        return read_key_values(text)
    except ValueError as error:
        # argparse shows the message of this exception only.
        raise argparse.ArgumentTypeError(str(error)) from error


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
