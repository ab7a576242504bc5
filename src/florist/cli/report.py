"""``florist report``: one page of a run, a comparison or an aggregate."""

from pathlib import Path
from typing import Annotated

import typer

from florist.cli.options import AsJson, Quiet, Verbose


def report_command(
    directory: Annotated[
        Path,
        typer.Argument(metavar="RUN|COMPARISON|AGGREGATE", help="What simulate, compare or aggregate wrote."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The file to create; by default report.html in the directory, over an old one."
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(help="A directory to create with every figure as SVG, PNG and PDF."),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page that shows what was run, what it cost, where the update lives and who contributed.

    The page is one file that works offline. What was not recorded is left out, so that old runs have a page too.
    """
    from florist.cli.report_libraries import require_reporting_libraries  # noqa: PLC0415
    from florist.files.outputs import require_absent  # noqa: PLC0415

    require_reporting_libraries()
    for path in (out, figures):
        if path is not None:
            require_absent(path)

    # torch takes seconds: it is not loaded before the arguments are known to be right.
    from florist.cli.output import Output  # noqa: PLC0415
    from florist.cli.report_work import write_report  # noqa: PLC0415

    write_report(directory, out, figures, Output(as_json=as_json, quiet=quiet, verbose=verbose))
