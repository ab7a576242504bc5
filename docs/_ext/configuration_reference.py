"""The keys of a configuration as Markdown, from the sections that read it."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tomli_w
from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, ByteSize
from pydantic.fields import FieldInfo

from florist.config import Config
from florist.config.sections import Section
from florist.config.sections.section import LARGEST_NUMBER

_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", ByteSize: "bytes, as `20MB`"}
_WRONG = {str: "", int: -1, float: -1.0}
"""A value that no validator of a key of this type takes: what it says then is what it wants."""


def configuration_reference() -> str:
    """A heading and a table for every section.

    Raises:
        ValueError: a section or a key has no docstring.
    """
    return "\n".join(_section(name, field.annotation, field.default) for name, field in Config.model_fields.items())


def _section(name: str, section: Any, default: Any) -> str:
    told = docstrings(section)
    if missing := [key for key in section.model_fields if not told.get(key)]:
        raise ValueError(f"{section.__name__}: expected a docstring below every key, got none below {missing}")
    hints = get_type_hints(section, include_extras=True)
    lines = [f"## `[{name}]`", "", _markdown(inspect.getdoc(section) or ""), ""]
    lines += ["| key | takes | by default | what it says |", "|---|---|---|---|"]
    for key, field in section.model_fields.items():
        value = getattr(default, key) if isinstance(default, Section) else field.default
        by_default = "must be set" if field.is_required() and not isinstance(default, Section) else _toml(value)
        lines.append(f"| `{key}` | {takes(hints[key])} | {by_default} | {_markdown(told[key])} |")
    return "\n".join([*lines, ""])


def docstrings(section: type[Section]) -> dict[str, str]:
    """The text below every key in the source of a section, in one line each."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    return dict(_docstrings(node)) if isinstance(node, ast.ClassDef) else {}


def _docstrings(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in pairwise(node.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
            yield field.target.id, " ".join(str(text).split())


def takes(hint: Any) -> str:
    """What values an annotation takes, in words."""
    if get_origin(hint) is Annotated:
        inner, *metadata = get_args(hint)
        if inner is bool and any(isinstance(each, AfterValidator) for each in metadata):
            return "`false`"  # a switch that cannot be turned on: a number in its place does that
        wanted = [text for each in metadata if (text := _wanted(each, inner))]
        whole = [text for text in wanted if text.startswith(("`", "a fraction"))]
        return whole[0] if whole else f"{takes(inner)} {' and '.join(wanted)}".rstrip()
    if get_origin(hint) in {Union, UnionType}:
        return " or ".join(dict.fromkeys(takes(each) for each in get_args(hint) if each is not NoneType))
    if get_origin(hint) is Literal:
        *others, last = map(_toml, get_args(hint))
        return f"{', '.join(others)} or {last}"
    if get_origin(hint) is tuple:
        return f"a list, each a {takes(get_args(hint)[0])}"
    return _NAMES[hint]


def _wanted(metadata: Any, kind: Any) -> str:
    """What one piece of the metadata of an annotation asks of a value; the empty text where it asks nothing."""
    if isinstance(metadata, FieldInfo):
        return " and ".join(text for each in metadata.metadata if (text := _wanted(each, kind)))
    if isinstance(metadata, AfterValidator) and kind in _WRONG:
        return _said(metadata.func, _WRONG[kind])
    for bound, words in ((Gt, "above"), (Ge, "at least"), (Lt, "below"), (Le, "at most")):
        if isinstance(metadata, bound):
            number = getattr(metadata, bound.__name__.lower())
            return "" if number == LARGEST_NUMBER else f"{words} {number:g}"
    return ""


def _said(check: Any, wrong: Any) -> str:
    try:
        check(wrong)
    except ValueError as error:
        text = str(error).removeprefix("expected ").split(" (to ")[0]
        names = text.removeprefix("Input should be ")
        return names if names == text else re.sub(r"'(.*?)'", r'`"\1"`', names)
    return ""


def _toml(value: object) -> str:
    if value is None:
        return "not set"
    return f"`{tomli_w.dumps({'x': value}).partition('=')[2].strip()}`"


def _markdown(text: str) -> str:
    """A docstring as Markdown that may stand in a table."""
    return text.replace("``", "`").replace("|", r"\|")
