"""``florist compare``: methods and variants against each other, over several seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from florist.cli.options import AsJson, Quiet, Verbose, WithReport
from florist.errors import ConfigurationError

if TYPE_CHECKING:
    from florist.comparison.directory import ComparisonDirectory


def compare_command(
    config_file: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.toml]", help="The configuration; without it, the demonstration.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Aggregation methods, as florist,fedit,flora, or all. By default all of them; with --variant, the one "
            "of the configuration."
        ),
    ] = None,
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            help="A further entry, 'NAME: key=value, key=value' on top of the configuration, as 'florist 0.99: "
            "aggregation.tau=0.99'. May be repeated.",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="How many seeds, from the configuration's on, as 3; or which, as 0,5,7. By default 3."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="How many runs at once, each in a process of its own.")] = 1,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key for all, as federation.rounds=2. May be repeated.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The directory to create; by default one in runs/.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the comparison in this directory.")] = None,
    with_report: WithReport = True,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Compare aggregation methods, or any variants of a configuration, in the same federations.

    Every run of one seed has the same data, participants and batches. Differences are given with the 95% interval of
    their mean over the seeds. An interrupted comparison goes on with --resume. If a run fails, the others go on, and
    the exit status is 1.
    """
    if resume is not None and (config_file or methods or variants or seeds or overrides or out):
        raise ConfigurationError(
            "--resume goes on with a comparison as it was configured: give no CONFIG, --methods, --variant, --seeds, "
            "--set or -o"
        )

    from florist.cli.output import Output  # noqa: PLC0415

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    with output.progress("checking the configurations") as progress:
        if resume is None:
            directory = _created(config_file, overrides or (), methods, variants or (), seeds or "3", jobs, out)
        else:
            from florist.cli.compare_work import open_comparison  # noqa: PLC0415  # torch takes seconds

            directory = open_comparison(resume)

        from florist.cli.compare_work import play_comparison, report  # noqa: PLC0415

        results = play_comparison(directory, jobs, output, progress)
    failed = report(directory, results, output)
    if with_report:
        from florist.cli.report_work import report_at_the_end  # noqa: PLC0415

        report_at_the_end(directory.path, output)
    if failed:
        raise typer.Exit(1)


def _created(
    config_file: Path | None,
    overrides: Sequence[str],
    methods: str | None,
    variants: Sequence[str],
    seeds: str,
    jobs: int,
    out: Path | None,
) -> "ComparisonDirectory":
    from florist.cli.compare_entries import entries_from  # noqa: PLC0415
    from florist.cli.run_names import run_path  # noqa: PLC0415
    from florist.comparison.planning import configure, seeds_from  # noqa: PLC0415
    from florist.config.reading import DEMONSTRATION, read_config  # noqa: PLC0415

    config_file = config_file or DEMONSTRATION
    path = run_path(out, f"compare-{config_file.stem}")
    entries = entries_from(methods, variants, read_config(config_file, overrides))
    base, configs = configure(config_file, overrides, entries)
    numbers = seeds_from(seeds, base.federation.seed)

    # torch takes seconds: it is not loaded before the arguments are known to be right.
    from florist.cli.compare_work import create_comparison  # noqa: PLC0415

    return create_comparison(path, base, configs, numbers, jobs)
