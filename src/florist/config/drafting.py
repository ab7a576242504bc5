"""A configuration as a TOML file for people: a line of explanation above every key, and unset keys commented out."""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tomli_w

from florist.config.reading import validated
from florist.config.sections import Config, Section

WIDTH = 120
"""How many characters a line has at most."""

Tables = Mapping[str, Mapping[str, Any]]
"""The keys that are set, by section."""


def draft(tables: Tables, title: Sequence[str], notes: Mapping[str, str] | None = None) -> str:
    """Return a TOML file that says every key, with the words that the sections say of it.

    A key that is not in `tables` is commented out by a ``#`` without a space, with the value that it has anyway; one
    that has no value then has none after its equals sign.

    Args:
        tables: The keys to set; they make a valid configuration.
        title: Lines at the top of the file.
        notes: Further lines above keys, by ``section.key``.

    Raises:
        ConfigurationError: Some keys are wrong or contradict each other.
    """
    config, notes = validated(Config, tables), notes or {}
    lines = [f"# {line}".rstrip() for line in title]
    for section in Config.model_fields:
        values = getattr(config, section)
        told = explanations(type(values))
        lines += ["", f"[{section}]"]
        for key in type(values).model_fields:
            for text in (told[key], notes.get(f"{section}.{key}", "")):
                lines += [f"# {line}" for line in textwrap.wrap(text, WIDTH - 2)]
            if key in tables.get(section, {}):
                lines.append(f"{key} = {_toml(tables[section][key])}")
            else:
                lines.append(f"#{key} = {_toml(getattr(values, key))}".rstrip())
    return "\n".join(lines) + "\n"


def explanations(section: type[Section]) -> dict[str, str]:
    """Return one line for every key of a section: what of its docstring in the source fits, in whole sentences."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    return dict(_docstrings(node)) if isinstance(node, ast.ClassDef) else {}


def _docstrings(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            constant = below.value if isinstance(below, ast.Expr) else None
            text = constant.value if isinstance(constant, ast.Constant) and isinstance(constant.value, str) else ""
            yield field.target.id, _first_sentences(" ".join(text.replace("``", "").replace("`", "").split()))


def _first_sentences(text: str) -> str:
    sentences = text.split(". ")
    while len(text) > WIDTH - 2 and len(sentences) > 1:
        sentences.pop()
        text = ". ".join(sentences) + "."
    return text


def _toml(value: object) -> str:
    """One value in one line; the empty text for None, which TOML does not know."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(each) for each in value)}]"
    return tomli_w.dumps({"x": value}).partition("=")[2].strip()
