"""From the directory of a run, a comparison or an aggregate to files."""

from pathlib import Path

from florist.errors import MissingInputError
from florist.files.outputs import new_directory, write_file
from florist.one_shot.certificate import CERTIFICATE_NAME
from florist.reporting.content import Page
from florist.reporting.of_aggregate import page_of_aggregate
from florist.reporting.of_comparison import page_of_comparison
from florist.reporting.of_run import page_of_run
from florist.reporting.page import html

PAGE = "report.html"
"""The name of the page in the directory that it is about."""


def page_of(path: Path) -> Page:
    """Make the page of whatever a directory is.

    Args:
        path: the directory of a run, a comparison or an aggregate.

    Raises:
        MissingInputError: it is none of them.
        FloristError: it cannot be read; see the function of each.
    """
    for file, make in (
        ("run.json", page_of_run),
        ("comparison.json", page_of_comparison),
        (CERTIFICATE_NAME, page_of_aggregate),
    ):
        if (path / file).is_file():
            return make(path)
    raise MissingInputError(
        f"expected the directory of a run, a comparison or an aggregate at {path}, found none of run.json, "
        f"comparison.json and {CERTIFICATE_NAME} in it; give what simulate, compare or aggregate wrote"
    )


def write_page(page: Page, file: Path) -> None:
    """Write a page over the one that is there, whole or not at all, and make the folders on the way."""
    write_file(file, html(page))


def write_figures(page: Page, folder: Path) -> list[Path]:
    """Write every figure of a page as SVG, PNG and PDF into a new folder.

    Returns:
        The files, in the order of the page.

    Raises:
        OutputExistsError: the folder is taken.
    """
    with new_directory(folder) as draft:
        written = [file for figure in page.figures for file in figure.write(draft)]
    return [folder / file.name for file in written]
