"""The examples in docstrings say what happens."""

import ast
import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import florist

SOURCE = Path(florist.__file__).parent
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def documented(file: Path) -> Iterator[tuple[str, str]]:
    """(name, docstring) of whatever a file documents with an example.

    They are taken from the source, because doctest's own finder passes over the functions that jaxtyping wraps.
    """
    relative = file.relative_to(SOURCE.parent).with_suffix("")
    module = ".".join(relative.parts).removesuffix(".__init__")
    nodes: list[tuple[str, ast.AST]] = [(module, ast.parse(file.read_text(encoding="utf-8")))]
    for name, node in nodes:
        nodes += [(f"{name}.{inner.name}", inner) for inner in ast.iter_child_nodes(node) if hasattr(inner, "name")]
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and doctest.DocTestParser().get_examples(text):
                yield name, text


EXAMPLES = [
    pytest.param(file, text, id=name) for file in sorted(SOURCE.rglob("*.py")) for name, text in documented(file)
]


@pytest.mark.parametrize("name", florist.__all__)
def test_every_public_name_has_an_example(name: str) -> None:
    assert doctest.DocTestParser().get_examples(getattr(florist, name).__doc__ or "")


@pytest.mark.parametrize(("file", "text"), EXAMPLES)
def test_an_example_gives_what_it_says_and_leaves_nothing_behind(
    file: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
    names = dict(vars(importlib.import_module(module)))
    example = doctest.DocTestParser().get_doctest(text, names, module, str(file), 0)
    found: list[str] = []
    result = doctest.DocTestRunner(optionflags=OPTIONS).run(example, out=found.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(found)
    assert list(tmp_path.iterdir()) == []
