"""What ``florist report`` does, and what other commands do of it at their end."""

from pathlib import Path

from florist.cli.output import Output
from florist.cli.report_libraries import INSTALL, missing_library


def write_report(directory: Path, out: Path | None, figures: Path | None, output: Output) -> None:
    """Write the page of a directory, and its figures as files if that is asked for.

    Args:
        directory: that of a run, a comparison or an aggregate.
        out: the file of the page; None for the one in the directory, which is replaced.
        figures: the directory to create for the figures; None for none.
        output: where to print.

    Raises:
        FloristError: as `reporting.writing.page_of` and `write_figures`.
    """
    from florist.reporting.writing import PAGE, page_of, write_figures, write_page  # noqa: PLC0415  # may be missing

    page = page_of(directory)
    file = out or directory / PAGE
    # The figures first: they are refused where the directory is taken, and then nothing is written.
    written = write_figures(page, figures) if figures is not None else []
    write_page(page, file)
    output.lines(f"report in {file}")
    for note in page.notes:
        output.note(note)
    if figures is not None:
        output.lines(f"{len(page.figures)} figures in {figures}, each as SVG, PNG and PDF")
    output.document(
        {
            "report": str(file),
            "bytes": file.stat().st_size,
            "sections": [section.title for section in page.sections],
            "figures": [figure.name for figure in page.figures],
            "files": [str(path) for path in written],
        }
    )


def report_at_the_end(directory: Path, output: Output) -> None:
    """Write the page of what a command has just made, and say where it is, or why there is none.

    The results are there already, so that a page that cannot be written is a note and no failure.
    """
    missing = missing_library()
    if missing is not None:
        output.note(f"no report is written, since {missing} is not installed: {INSTALL}")
        return
    from florist.reporting.writing import PAGE, page_of, write_page  # noqa: PLC0415  # may be missing

    try:
        write_page(page_of(directory), directory / PAGE)
    except Exception as error:  # noqa: BLE001  # the drawing libraries have errors of their own, and the run is whole
        output.note(f"no report is written: {' '.join(str(error).split())}")
        return
    output.lines(f"report in {directory / PAGE}")
