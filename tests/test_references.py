"""The references of the site have each key, each option and each public name, and refuse what nobody explains."""

import sys
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from types import ModuleType

import click
import pytest
from docs._ext import command_reference, configuration_reference, name_reference
from pydantic.fields import FieldInfo

import florist
from florist.config import Config
from florist.config.sections import Section

NAMED = ("florist", *name_reference.PACKAGES, *name_reference.MODULES)


def test_every_key_of_a_configuration_is_explained() -> None:
    text = configuration_reference.configuration_reference()
    for name, field in Config.model_fields.items():
        (table,) = (part for part in text.split("## `") if part.startswith(f"[{name}]"))
        assert field.annotation is not None
        for key in field.annotation.model_fields:
            (line,) = (line for line in table.splitlines() if line.startswith(f"| `{key}` |"))
            assert len(line.split(" | ")) == 4, line


@pytest.mark.parametrize(
    "line",
    [
        "| `rounds` | whole number above 0 | `3` | How many rounds are played. |",
        "| `fraction` | a fraction of the clients in (0, 1] | `1.0` |",
        '| `local_init` | `"fresh"`, `"aligned"` or `"warm"` | `"aligned"` |',
        "| `ranks` | whole number above 0 or a list, each a whole number above 0 | must be set |",
        "| `largest_norm` | number above 0 or `false` | `false` |",
        "| `threshold` | whole number at least 2 or number above 0.5 and at most 1 | not set |",
        '| `noise_edge` | `true` or `"shrunk"` | not set |',
        "| `budget` | bytes, as `20MB` above 0 | not set |",
    ],
)
def test_a_key_has_its_type_bounds_and_default(line: str) -> None:
    assert line in configuration_reference.configuration_reference()


def test_a_key_that_nobody_explains_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strange.py").write_text(
        "from florist.config.sections import Section\n\n\nclass Strange(Section):\n    key: int = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    strange: type[Section] = import_module("strange").Strange
    monkeypatch.setitem(Config.model_fields, "strange", FieldInfo(annotation=strange, default=strange()))
    with pytest.raises(ValueError, match=r"Strange: expected a docstring below every key, got none below \['key'\]"):
        configuration_reference.configuration_reference()


def test_every_command_and_option_is_explained() -> None:
    text = command_reference.command_reference()
    assert len(command_reference.commands()) > 10
    for name, command in command_reference.commands().items():
        (section,) = (part for part in text.split("\n## `") if part.startswith(f"florist {name}`"))
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert f"| `{', '.join(sorted(option.opts, key=len))}" in section
    assert "\\[required]" in text


def test_an_option_that_nobody_explains_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    strange = click.Command("strange", params=[click.Option(["--key"])], help="It is strange.")
    monkeypatch.setattr(command_reference, "commands", lambda: {"strange": strange})
    with pytest.raises(ValueError, match="florist strange: expected a help of --key TEXT, got none"):
        command_reference.command_reference()


@pytest.mark.parametrize("module", NAMED)
def test_every_name_of_the_site_is_documented(module: str) -> None:
    loaded = import_module(module)
    names = name_reference.public_names(loaded)
    assert names
    assert [name for name in names if name_reference.undocumented(loaded, name)] == []


def test_every_package_that_lists_names_is_on_the_site() -> None:
    found = {"florist"}
    for info in walk_packages(florist.__path__, "florist."):
        if info.ispkg and hasattr(import_module(info.name), "__all__"):
            found.add(info.name)
    assert found - set(NAMED) == {"florist.config.sections"}  # the page about configurations has them


def test_a_public_name_that_nobody_explains_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    strange = ModuleType("strange", "It is strange.")
    strange.__dict__.update({"__all__": ["Thing"], "Thing": type("Thing", (), {"__module__": "strange"})})
    monkeypatch.setitem(sys.modules, "strange", strange)
    monkeypatch.setattr(name_reference, "PACKAGES", ("strange",))
    with pytest.raises(ValueError, match=r"strange\.Thing: expected a docstring of a public name, got none"):
        name_reference.package_reference()
