"""Fills the marked places of the reference pages with what the code says of itself.

A page has the mark ``<!-- generated: commands -->``. What takes its place is the Markdown of one function, so that the
page has headings, links and a table of contents like any other, and nothing generated is ever a file.
"""

import re
from typing import Any

from command_reference import command_reference
from configuration_reference import configuration_reference
from name_reference import name_reference, package_reference
from sphinx.application import Sphinx

MARK = re.compile(r"<!-- generated: (\w+) -->")
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./((?:[a-z]+/)*[A-Z]+\.md)\)")
"""A link to a page of the repository that is none of the site."""
REFERENCES = {
    "commands": command_reference,
    "configuration": configuration_reference,
    "names": name_reference,
    "packages": package_reference,
}


def fill(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Put what is generated in the place of its mark; a mark that nobody knows is a KeyError, which fails the build.

    Links to pages that only the repository has become their names.
    """
    source[0] = OUTSIDE.sub(r"`\2` of the repository", MARK.sub(lambda mark: REFERENCES[mark[1]](), source[0]))


def keep_colon(_app: Sphinx, what: str, _name: str, _thing: object, _options: object, lines: list[str]) -> None:
    """Put an empty comment before a sentence about a value: napoleon takes what is before a colon for a type."""
    if what in {"attribute", "data", "property"} and lines and ":" in lines[0]:
        lines[:0] = ["..", ""]


def setup(app: Sphinx) -> dict[str, Any]:
    """Let Sphinx call `fill` for every page that it reads, and `keep_colon` before napoleon reads a docstring."""
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", keep_colon, priority=100)
    return {"parallel_read_safe": True, "version": "1"}
