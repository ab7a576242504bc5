"""``florist simulate``: a federation in one process, from a configuration or the embedded demonstration."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from florist.cli.options import AsJson, Quiet, Verbose, WithReport
from florist.errors import ConfigurationError

if TYPE_CHECKING:
    from florist.cli.output import Output
    from florist.cli.progress import Progress
    from florist.federation.history import RunDirectory


def simulate_command(
    config_file: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.toml]", help="The configuration; without it, the demonstration.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key, as federation.rounds=2. May be repeated.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The directory to create for the run; by default one in runs/.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with the run in this directory; --set may change its rounds, evaluation, tracking, and --flush."
        ),
    ] = None,
    flush: Annotated[
        bool | None,
        typer.Option(
            help="Whether the final adapter has what the server still holds back; short for --set communication.flush.",
            show_default=False,
        ),
    ] = None,
    with_report: WithReport = True,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune with a federation of clients in one process: train, aggregate, evaluate, round by round.

    The base model is never changed; the result is one PEFT adapter. An interrupted run goes on with --resume and ends
    as if it had never stopped. If no round had enough usable updates, there is no adapter, and the exit status is 1.
    """
    if resume is not None and (config_file is not None or out is not None):
        raise ConfigurationError(
            "--resume goes on with a run as it was configured: give no CONFIG and no -o; --set may change "
            "federation.rounds, early_stopping and min_delta, evaluation, tracking and communication.flush"
        )

    from florist.cli.output import Output  # noqa: PLC0415

    changes = [*(overrides or ()), *([] if flush is None else [f"communication.flush={str(flush).lower()}"])]
    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    with output.progress("loading the model") as progress:
        if resume is None:
            run = _started(config_file, changes, out, output, progress)
        else:
            from florist.cli.simulate_work import resume_run  # noqa: PLC0415  # torch takes seconds

            run = resume_run(resume, changes, output, progress)

    from florist.cli.simulate_work import report  # noqa: PLC0415

    report(run, output)
    if with_report:
        from florist.cli.report_work import report_at_the_end  # noqa: PLC0415

        report_at_the_end(run.path, output)
    if not run.adapter.exists():
        raise typer.Exit(1)


def _started(
    config_file: Path | None, overrides: Sequence[str], out: Path | None, output: "Output", progress: "Progress"
) -> "RunDirectory":
    from florist.cli.run_names import run_path  # noqa: PLC0415
    from florist.config.reading import DEMONSTRATION, read_config  # noqa: PLC0415

    config_file = config_file or DEMONSTRATION
    config, path = read_config(config_file, overrides), run_path(out, config_file.stem)

    # torch takes seconds: it is not loaded before the arguments are known to be right.
    from florist.cli.simulate_work import start_run  # noqa: PLC0415

    return start_run(config, path, output, progress)
