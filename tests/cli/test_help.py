"""The help pages: their examples can be run, and every command has the options that all have."""

import re
import shlex

import click
import pytest
import typer

from florist.cli import app

from .running import Run

ROOT = typer.main.get_command(app)
assert isinstance(ROOT, click.Group)
PAGES = {"florist": ROOT, **{f"florist {name}": command for name, command in ROOT.commands.items()}}


def examples_of(page: click.Command) -> list[str]:
    return [line for line in (page.epilog or "").split("\n\n") if line.startswith("florist")]


EXAMPLES = [example for page in PAGES.values() for example in examples_of(page)]


def parse(example: str) -> click.Context:
    """Read an example as the command would, up to the point where it would begin its work."""
    program, name, *words = shlex.split(example)
    assert program == "florist"
    assert isinstance(ROOT, click.Group)
    return ROOT.commands[name].make_context(name, words)


@pytest.mark.parametrize("page", PAGES)
def test_every_page_ends_with_one_or_two_examples(page: str, florist: Run) -> None:
    examples = examples_of(PAGES[page])
    assert 1 <= len(examples) <= 2
    told = florist(*page.split()[1:], "--help", columns=80).stdout
    assert [line.strip() for line in told.splitlines() if line.strip()][-len(examples) - 1 :] == [
        "Examples:",
        *examples,
    ]
    assert all(len(example) < 79 for example in examples)
    if page != "florist":
        assert all(example.startswith(f"{page} ") for example in examples)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_has_options_that_exist_and_values_that_they_take(example: str) -> None:
    assert parse(example).params


@pytest.mark.parametrize(
    "example", ["florist simulate --nonsense", "florist aggregate a b", "florist compare --jobs many"], ids=str
)
def test_an_example_that_is_wrong_would_be_found(example: str) -> None:
    with pytest.raises(click.UsageError):
        parse(example)


@pytest.mark.parametrize("page", [page for page in PAGES if page != "florist"])
def test_every_command_has_the_options_of_all(page: str) -> None:
    options = {option for parameter in PAGES[page].params for option in parameter.opts}
    assert {"--quiet", "-q", "--verbose", "-v", "--json"} <= options


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("page", PAGES)
def test_no_help_page_is_cut(page: str, columns: int, florist: Run) -> None:
    told = florist(*page.split()[1:], "--help", columns=columns).stdout
    assert "…" not in told
    for option in (option for parameter in PAGES[page].params for option in parameter.opts if option[0] == "-"):
        assert re.search(rf"{option}\b", told), option
