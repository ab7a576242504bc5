"""Paths and links in the documents lead somewhere."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from florist.federation import run_format
from florist.flower import messages
from florist.one_shot import certificate

from . import pages
from .pages import DOCS, ROOT, text_of

PAGES = [*pages.PAGES, ROOT / "CONTRIBUTING.md"]
SECURITY = ROOT / "SECURITY.md"
PLACES = re.findall(r"`(?!src/)([a-z_/]+(?:\.py|/))`(?:: `(\w+)`)?", (ROOT / "docs" / "glossary.md").read_text())


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def linked(page: Path) -> set[Path]:
    """The files of this repository that a page links, or lists in a table of contents of the site."""
    text = text_of(page)
    names = [name for name in re.findall(r"\]\(([^)#\s]+)", text) if not name.startswith("https://")]
    for listed in re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL):
        lines = [line for line in listed.splitlines() if line and not line.startswith(":")]
        names += [f"{line}{ending}" for line in lines for ending in (".md", ".ipynb")]
    return {(page.parent / name).resolve() for name in names}


@pytest.mark.parametrize("page", [*PAGES, SECURITY], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_page_and_a_heading_of_this_repository(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_reached_from_the_first_one() -> None:
    reached, found = set[Path](), {PAGES[0]}
    while found:
        reached |= found
        found = {file for page in found for file in linked(page) if file in PAGES} - reached
    assert set(PAGES) - reached == set()


def test_the_formats_have_the_numbers_of_the_code() -> None:
    numbers = [run_format.FORMAT, certificate.FORMAT, messages.PROTOCOL]
    table = re.findall(r"^\| [^|]+ \| `\w+` in [^|]+ \| (\d+) \|", (DOCS / "formats.md").read_text(), re.MULTILINE)
    assert list(map(int, table)) == numbers


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "privacy.md"], ids=lambda page: page.name)
def test_where_to_report_a_vulnerability_is_linked(page: Path) -> None:
    assert SECURITY in linked(page)


def test_the_glossary_names_places_that_exist() -> None:
    assert len(PLACES) > 30
    for place, name in PLACES:
        assert (ROOT / "src" / "florist" / place).exists(), place
        if name:
            assert hasattr(import_module(f"florist.{place.removesuffix('.py').replace('/', '.')}"), name), (place, name)


def test_the_map_for_contributors_names_every_folder() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    package = ROOT / "src" / "florist"
    folders = {f"`src/florist/{init.parent.name}/`" for init in package.glob("*/__init__.py")}
    assert len(folders) > 10
    assert {folder for folder in folders if folder not in text} == set()
