"""``florist tune``: choose tau by validation examples, from one decomposition."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from florist.cli.libraries import load_training_libraries
from florist.cli.options import AsJson, Quiet, Verbose
from florist.cli.weights import parse_weights
from florist.errors import ConfigurationError

TAUS = "0.5,0.6,0.7,0.8,0.85,0.9,0.95,0.98,0.99,1"


def tune_command(
    sources: Annotated[
        list[str], typer.Argument(metavar="RUN|ADAPTER...", help="A finished run; or PEFT adapters, with --config.")
    ],
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="CONFIG.toml", help="Names the model and the validation examples for ADAPTERs."
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="The examples behind ADAPTERs, as 3,1,1; see aggregate --help.")
    ] = None,
    taus: Annotated[
        str, typer.Option(help="The thresholds to try; 1 is always tried.", show_default="ten from 0.5 to 1")
    ] = TAUS,
    metric: Annotated[
        str | None, typer.Option(help="The metric that decides; by default the configuration's first.")
    ] = None,
    margin: Annotated[float, typer.Option(help="How far FLoRIST-E may fall short, in the metric's own unit.")] = 0.0,
    baseline: Annotated[
        float | None, typer.Option(help="The value that FLoRIST-E has to match; by default that at tau = 1.")
    ] = None,
    baseline_runs: Annotated[
        list[Path] | None,
        typer.Option("--baseline-run", metavar="RUN", help="Measure this run for a baseline; the best of several."),
    ] = None,
    bisecting: Annotated[
        bool, typer.Option("--bisect", help="Evaluate little, if the metric gets no worse as tau grows.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The directory to create for FLoRIST-E.")] = None,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="ADAPTERs name their base differently, and it is the same.")
    ] = False,
    average_full: Annotated[
        bool, typer.Option("--average-full", help="Average the parameters of ADAPTERs that were trained whole.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Sweep tau on one decomposition and pick two: FLoRIST-O, the best, and FLoRIST-E, the lowest that still matches.

    What FLoRIST-E has to match is the baseline, or else tau = 1. Metrics are those of the validation examples.
    """
    from florist.cli.output import Output  # noqa: PLC0415
    from florist.files.outputs import require_absent  # noqa: PLC0415

    if out is not None:
        require_absent(out)
    if baseline is not None and baseline_runs:
        raise ConfigurationError("--baseline and --baseline-run contradict each other: give one")
    run = _run(sources, config_file)
    if run is not None and (weights is not None or allow_base_mismatch or average_full):
        raise ConfigurationError(
            "--weights, --allow-base-mismatch and --average-full are for ADAPTERs, and a run has one adapter: leave "
            "them out"
        )
    thresholds, num_examples = _thresholds(taus), parse_weights(weights) if weights is not None else None

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    with output.progress("loading the libraries") as progress:
        load_training_libraries("tune")  # takes seconds: not before the arguments are known to be right
        from florist.cli import tune_work  # noqa: PLC0415  # needs these libraries
        from florist.federation.history import RunDirectory  # noqa: PLC0415  # needs torch

        source = tune_work.Source(
            run=run,
            adapters=tuple(sources) if run is None else (),
            config_file=config_file or RunDirectory.open(Path(sources[0])).played_config,
            num_examples=num_examples,
            allow_base_mismatch=allow_base_mismatch,
            average_full=average_full,
        )
        tuned, whole = tune_work.tune(
            source,
            thresholds,
            metric=metric,
            margin=margin,
            baseline=baseline,
            baseline_runs=baseline_runs or (),
            bisecting=bisecting,
            output=output,
            progress=progress,
        )
    tune_work.report(tuned, whole, out, output)


def _run(sources: Sequence[str], config_file: Path | None) -> Path | None:
    """The run that is to be tuned; None if it is adapters."""
    runs = [source for source in sources if Path(source, "run.json").is_file()]
    if config_file is not None and runs:
        raise ConfigurationError(
            f"expected adapters with --config, got the run {runs[0]}, which has a configuration of its own: leave "
            f"--config out, or name {runs[0]}/adapter"
        )
    if config_file is not None:
        return None
    if runs and len(sources) > 1:
        raise ConfigurationError(
            f"expected one run or several adapters, got {', '.join(sources)}; give the run {runs[0]} alone"
        )
    if not runs:
        raise ConfigurationError(
            f"expected the directory of a run, or adapters with --config, got {', '.join(sources)} without one; "
            "--config CONFIG.toml names the model and the validation examples"
        )
    return Path(runs[0])


def _thresholds(taus: str) -> list[float]:
    from florist.config.reading import validated  # noqa: PLC0415
    from florist.config.sections import AggregationSection  # noqa: PLC0415

    try:
        given = [float(part) for part in taus.split(",")]
    except ValueError as error:
        raise ConfigurationError(f"expected --taus as numbers with commas, as 0.8,0.9,1, got {taus!r}") from error
    for tau in given:
        validated(AggregationSection, {"tau": tau}, {"tau": "--taus"})
    return [*given, 1.0]  # the threshold that the others are compared with
