"""The page as text, and in a browser: it loads nothing, logs nothing, and draws every figure."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from florist.reporting.content import Page, Table
from florist.reporting.page import html
from florist.reporting.writing import page_of, write_page

from .browser import needs_chromium, opened
from .made import HOSTILE, a_comparison, a_run

KINDS = ("run", "old", "comparison")
ONE_QUICK = ("run", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:]))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    folder = tmp_path_factory.mktemp("pages")
    a_run(folder / "run")
    a_run(folder / "old", bare=True)
    a_comparison(
        folder / "comparison",
        {
            "florist": ("aggregation.tau=0.9", 1.0),
            "florist 0.8": ("aggregation.tau=0.8", 1.5),
            f"fedit {HOSTILE}": ("aggregation.method=fedit", 1.2),
        },
    )
    return {kind: page_of(folder / kind) for kind in KINDS}


def test_a_comparison_tells_which_final_adapter_is_damaged(tmp_path: Path) -> None:
    out = tmp_path / "comparison"
    a_comparison(out, {"florist": ("aggregation.tau=0.9", 1.0), "fedit": ("aggregation.method=fedit", 1.2)}, seeds=(0,))
    (out / "cells" / "fedit" / "seed-0" / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    told = page_of(out)
    assert "1 of 2 runs do not count" in told.summary
    (failures,) = [
        block for block in told.sections[0].blocks if isinstance(block, Table) and "not count" in block.caption
    ]
    ((entry, seed, reason),) = failures.lines
    assert (entry, seed) == ("fedit", "0")
    assert reason.startswith("adapter/adapter_model.safetensors is not as it was written")
    assert f"florist compare --resume {out}" in reason


class _Elements(HTMLParser):
    """The elements of a page, and the addresses that they would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def values(self, tag: str, name: str) -> list[str]:
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


def _encodings(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "encoding" in document:
        yield document["encoding"]
    for part in document.get("layer", ()):
        yield from _encodings(part)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_names_no_address_to_load_from(pages: dict[str, Page], kind: str) -> None:
    elements = _Elements(html(pages[kind]))
    assert not [a for a in elements.attributes if a[1] in {"src", "srcset", "action", "data", "poster"}]
    assert elements.values("link", "href") == ["data:,"]
    assert all(link.startswith("#") for link in elements.values("a", "href"))
    (policy,) = (v for v in elements.values("meta", "content") if "default-src" in v)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy


def test_a_hostile_name_is_text(pages: dict[str, Page]) -> None:
    for page in pages.values():
        text = html(page)
        elements = _Elements(text)
        assert "img" not in elements.tags
        assert elements.tags.count("script") == 3
        assert HOSTILE not in text
        assert "onerror=alert(1)" in text  # it is there, and escaped


def test_ids_are_unlike_and_links_lead_somewhere(pages: dict[str, Page]) -> None:
    for page in pages.values():
        elements = _Elements(html(page))
        ids = [value for _, name, value in elements.attributes if name == "id"]
        assert len(ids) == len(set(ids))
        assert {link[1:] for link in elements.values("a", "href")} <= set(ids)


def test_every_figure_has_labelled_axes_and_is_told_to_who_cannot_see_it(pages: dict[str, Page]) -> None:
    for page in pages.values():
        assert page.figures
        elements = _Elements(html(page))
        labels = elements.values("div", "aria-label")
        for figure in page.figures:
            assert figure.alt in labels
            assert len(figure.alt) > 30
            assert figure.caption
            encodings = list(_encodings(figure.specification()))
            titles = [e[axis].get("title") for e in encodings for axis in ("x", "y") if axis in e]
            assert titles
            # Names of clients and projections need no title.
            assert all(titles) or any(e.get("y", {}).get("type") == "nominal" for e in encodings)


def test_a_section_without_data_is_left_out(pages: dict[str, Page], tmp_path: Path) -> None:
    assert [section.name for section in pages["run"].sections] == [
        *("result", "cost", "update", "held-back", "clients", "load", "reproduce")
    ]
    assert "held-back" not in [section.name for section in pages["old"].sections]
    names = {figure.name for figure in pages["old"].figures}
    assert not names & {"update-norms", "cosines", "mean-cosine", "examples"}
    assert names >= {"round-loss", "bytes-loss", "rank-by-layer", "training-losses"}
    a_run(tmp_path / "begun", rounds=0, final=False, bare=True)
    begun = page_of(tmp_path / "begun")
    assert begun.summary == "No round has been played yet."
    assert {section.name for section in begun.sections} == {"result", "reproduce"}
    assert "<h2" in html(begun)


@needs_chromium
@pytest.mark.parametrize("kind", ONE_QUICK)
def test_a_browser_draws_every_figure_in_silence(pages: dict[str, Page], kind: str, tmp_path: Path) -> None:
    write_page(pages[kind], tmp_path / "report.html")
    found = opened(tmp_path / "report.html", tmp_path)
    assert found.console == []
    assert found.requested == []
    assert f'data-drawn="{len(pages[kind].figures)}"' in found.dom
    assert found.marks.keys() == {figure.name for figure in pages[kind].figures}
    assert [name for name, count in found.marks.items() if not count] == []
    assert "could not be drawn" not in re.sub(r"<script.*?</script>", "", found.dom, flags=re.DOTALL)


@needs_chromium
def test_the_policy_stops_what_slipped_through(pages: dict[str, Page], tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    slipped = '<img src="http://127.0.0.1:9/x.png"><script>document.title = "taken over"</script></main>'
    file.write_text(html(pages["run"]).replace("</main>", slipped))
    found = opened(file, tmp_path)
    assert len(found.console) >= 2
    assert found.requested == []
    assert "<title>taken over" not in found.dom


@pytest.mark.slow
def test_the_page_of_a_large_run_stays_below_eight_megabytes(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", rounds=75, clients=100, modules=200, features=128, rank=64)
    page = page_of(run.path)
    assert len(html(page).encode()) < 8e6
    # Nothing was thinned out to get there.
    by_name = {figure.name: figure for figure in page.figures}
    assert len(by_name["update-norms"].rows) == 75 * 99
    assert len(by_name["rank-by-layer"].rows) == 200
