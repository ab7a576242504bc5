"""Paths and links in the documents lead somewhere."""

import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SECURITY = ROOT / "SECURITY.md"
PLACES = re.findall(r"`(?!src/)([a-z_/]+(?:\.py|/))`(?:: `(\w+)`)?", (ROOT / "docs" / "glossary.md").read_text())


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, SECURITY], ids=lambda page: page.name)
def test_every_link_leads_to_a_page_and_a_heading_of_this_repository(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_the_first_one() -> None:
    linked = set(re.findall(r"\]\(([^)#\s]+)", PAGES[0].read_text()))
    assert {str(page.relative_to(ROOT)) for page in PAGES[1:]} <= linked


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "privacy.md"], ids=lambda page: page.name)
def test_where_to_report_a_vulnerability_is_linked(page: Path) -> None:
    linked = {(page.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())}
    assert SECURITY in linked


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
