"""``florist evaluate``: a saved adapter, measured on any examples."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from florist.cli.options import AsJson, Quiet, Verbose
from florist.errors import ConfigurationError


class SplitName(Enum):
    """The examples of a configuration."""

    TEST = "test"
    VALIDATION = "validation"
    TRAIN = "train"


def evaluate_command(
    adapter: Annotated[
        str | None,
        typer.Argument(
            metavar="[ADAPTER|RUN]",
            help="A PEFT adapter, by its directory or its hub id in the local cache, or the directory of a run; it may "
            "be left out with --base.",
        ),
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="The configuration; by default that of the RUN."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key, as evaluation.metrics=['loss']. May be repeated.")
    ] = None,
    split: Annotated[
        SplitName | None, typer.Option(help="The examples to measure on; by default test.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file of examples to measure on, in the place of a split.")
    ] = None,
    by_client: Annotated[
        bool, typer.Option("--by-client", help="Measure on the examples of each client as well.")
    ] = False,
    base: Annotated[bool, typer.Option("--base", help="Measure the base alone as well, to compare with.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Measure a saved adapter by the metrics of its configuration, on held-out examples or on any file of examples."""
    from florist.cli.output import Output  # noqa: PLC0415
    from florist.config.reading import read_config  # noqa: PLC0415

    if split is not None and data is not None:
        raise ConfigurationError("--split and --data contradict each other: each names the examples; give one")
    if adapter is None and not base:
        raise ConfigurationError("expected an adapter or a run to measure, or --base for the base alone; give one")
    run = Path(adapter) if adapter is not None and (Path(adapter) / "run.json").is_file() else None
    if config_file is None and run is None:
        raise ConfigurationError(
            "expected --config FILE, which names the model, the task and the metrics; a RUN has its own config.toml"
        )
    config = read_config(config_file or _played_config(Path(run or "")), overrides or ())

    # torch takes seconds: it is not loaded before the arguments are known to be right.
    from florist.cli.evaluate_work import evaluate, final_adapter  # noqa: PLC0415

    evaluate(
        config,
        final_adapter(run) if run is not None else adapter,
        split=split.value if split is not None else "test",
        data=data,
        by_client=by_client,
        base=base,
        output=Output(as_json=as_json, quiet=quiet, verbose=verbose),
    )


def _played_config(run: Path) -> Path:
    from florist.federation.own_files import OwnFiles  # noqa: PLC0415
    from florist.federation.run_format import require_format  # noqa: PLC0415

    require_format(run)
    return OwnFiles(run).played_config()
