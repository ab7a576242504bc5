"""The options that several commands have, with one meaning."""

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and no table.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print the result alone: no progress and no notes. Errors are printed.")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also print what is decided and why, and a line for every part.")
]
WithReport = Annotated[
    bool, typer.Option("--report/--no-report", help="Whether to write report.html, the page of `florist report`.")
]
