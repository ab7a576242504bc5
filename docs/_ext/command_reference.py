"""The commands of florist and their options as Markdown, from the application that parses them."""

from collections.abc import Iterable, Iterator

import click
import typer

from florist.cli import app


def command_reference() -> str:
    """A section for florist itself and for each of its commands.

    Raises:
        ValueError: a command, an argument or an option has no help.
    """
    group = typer.main.get_command(app)
    named = [("florist", group), *((f"florist {name}", one) for name, one in commands().items())]
    return "\n".join("\n".join(_section(name, command)) for name, command in named)


def commands() -> dict[str, click.Command]:
    """The commands by name."""
    group = typer.main.get_command(app)
    if not isinstance(group, click.Group):
        raise TypeError(f"expected a group of commands, got {type(group).__name__}")
    return dict(sorted(group.commands.items()))


def _section(name: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=name)
    if not command.help:
        raise ValueError(f"{name}: expected a docstring of the command, which is its help, got none")
    yield f"## `{name}`"
    yield ""
    yield from ["```text", " ".join([name, *command.collect_usage_pieces(context)]), "```", ""]
    yield from [_text(command.help), ""]
    yield from _table("argument", (each for each in command.params if isinstance(each, click.Argument)), name, context)
    yield from _table("option", (each for each in command.params if isinstance(each, click.Option)), name, context)
    examples = [line for line in (command.epilog or "").splitlines() if line.startswith("florist")]
    if examples:
        yield from ["```sh", *examples, "```", ""]


def _table(kind: str, parameters: Iterable[click.Parameter], name: str, context: click.Context) -> Iterator[str]:
    lines: list[str] = []
    for parameter in parameters:
        record = parameter.get_help_record(context)
        if record is None:  # it is hidden
            continue
        names, text = record
        if not getattr(parameter, "help", None):
            raise ValueError(f"{name}: expected a help of {names}, got none")
        lines.append(f"| {' '.join(f'`{each}`' for each in names.split('  '))} | {_text(text)} |")
    if lines:
        yield from [f"| {kind} | what it does |", "|---|---|", *lines, ""]


def _text(text: str) -> str:
    """A help text as Markdown: nothing of it is markup, and it may stand in a table."""
    text = text.replace("\\[", "[")  # so that rich takes it for no markup
    for mark in "\\*_<[|":
        text = text.replace(mark, f"\\{mark}")
    return text
