"""A page as one HTML file that loads nothing: its scripts, styles, figures and data are in it."""

import base64
import hashlib
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from florist.files import strict_json
from florist.reporting.content import Block, Code, Page, Table, Text
from florist.reporting.figures import Figure, Row
from florist.reporting.numbers import MISSING, number

MOST_LINES = 200
"""The table beneath a figure has at most so many lines."""


def html(page: Page) -> str:
    """Render a page.

    Text is escaped wherever it comes from: the name of a client, of a metric or of a module is text and nothing else.
    A Content-Security-Policy allows the page's own two scripts by their hashes and no request at all, so that nothing
    that slipped through would run or leave the page.

    Cost: the figures' JavaScript is bundled once a process, which takes a second or two.
    """
    figures = page.figures
    drawing = _resource("page.js")
    scripts = [*([library()] if figures else []), drawing]
    return (
        _templates()
        .get_template("page.html.jinja")
        .render(
            page=page,
            css=Markup(_resource("page.css")),  # noqa: S704  # a file of this package
            policy=_policy(scripts),
            scripts=[Markup(script) for script in scripts],  # noqa: S704  # as the hash has them: no text of a user
            specifications=Markup(_json({figure.name: figure.specification() for figure in figures})),  # noqa: S704
            kind=_kind,
            data_of=_data_of,
            version=version("florist"),
        )
    )


@cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, which vl-convert carries."""
    # Within a script element, its own end tag would end it.
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")


def _policy(scripts: list[str]) -> str:
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    # Vega-Embed adds its own style elements.
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _json(document: Any) -> str:
    return (
        strict_json.encode(document).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    )


def _kind(block: Block) -> str:
    return {Figure: "figure", Table: "table", Code: "code", Text: "text"}[type(block)]


def _data_of(figure: Figure) -> tuple[list[str], list[list[str]], int]:
    """The table beneath a figure: heads, lines, and how many lines are left out."""
    # A column that is empty throughout is no column: intervals of a single run.
    keys = [key for key in figure.columns if any(row.get(key) is not None for row in figure.rows)]
    lines = [[_cell(row, key) for key in keys] for row in figure.rows[:MOST_LINES]]
    return [figure.columns[key] for key in keys], lines, len(figure.rows) - len(lines)


def _cell(row: Row, key: str) -> str:
    value = row.get(key)
    if isinstance(value, float):
        return number(value)
    return MISSING if value is None else str(value)


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("florist.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _resource(name: str) -> str:
    return (files("florist.reporting") / name).read_text(encoding="utf-8").strip()
