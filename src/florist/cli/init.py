"""``florist init``: write a configuration for a model and its examples, or one of the paper's."""

from pathlib import Path
from typing import Annotated

import click
import typer

from florist.cli.options import AsJson, Quiet, Verbose
from florist.errors import ConfigurationError, OutputExistsError

FILE = Path("florist.toml")


def init_command(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write.")] = FILE,
    model: Annotated[str | None, typer.Option(help="The base: a directory, or a hub id.")] = None,
    data: Annotated[Path | None, typer.Option(help="The directory of the examples, or a file of them.")] = None,
    clients: Annotated[int | None, typer.Option(min=1, help="How many clients share one file of examples.")] = None,
    ranks: Annotated[str | None, typer.Option(help="The rank of all clients, as 16, or one each, as 64,32,16.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="How many rounds to play; 3 by default.")] = None,
    partition_field: Annotated[
        str | None, typer.Option(help="A field of the examples, a category for instance, in which clients are unlike.")
    ] = None,
    instruction_field: Annotated[str | None, typer.Option(help="The field of the instruction.")] = None,
    input_field: Annotated[str | None, typer.Option(help="The field of what the instruction is about.")] = None,
    output_field: Annotated[str | None, typer.Option(help="The field of the answer.")] = None,
    label_field: Annotated[str | None, typer.Option(help="The field of the class, to learn to classify.")] = None,
    text_field: Annotated[str | None, typer.Option(help="With --label-field, the field of the text.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Write this set-up; `list` prints their names. --model and --data change it.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: take what is proposed.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it is there.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Look at a model and its examples, and write a commented configuration that runs.

    What no option says is asked. The weights of the model are not loaded, and nothing is trained.
    """
    from florist.cli import init_work  # noqa: PLC0415  # pydantic takes its time
    from florist.cli.output import Output  # noqa: PLC0415
    from florist.files.outputs import write_file  # noqa: PLC0415

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    if preset == "list":
        presets = init_work.preset_names()
        if not as_json:
            output.lines(*(f"{name:<28} {about}" for name, about in presets))
        output.document({"presets": dict(presets)})
        return
    options = init_work.Options(
        model=model,
        data=data,
        clients=clients,
        ranks=init_work.numbers(ranks, "--ranks") if ranks is not None else None,
        rounds=rounds,
        partition_field=partition_field,
        instruction_field=instruction_field,
        input_field=input_field,
        output_field=output_field,
        label_field=label_field,
        text_field=text_field,
    )
    try:
        if out.exists() and not (overwrite or (not yes and typer.confirm(f"{out} exists. Replace it?", err=True))):
            raise OutputExistsError(f"{out} already exists: choose another name by -o, or replace it by --overwrite")
        if preset is not None:
            text = init_work.from_preset(preset, options, out)
        else:
            text = init_work.surveyed(options, out, ask=None if yes else _ask)
    except click.Abort:
        typer.echo(err=True)  # after the question
        raise ConfigurationError(
            f"a question was not answered, and {out} was not written; give --yes to take what is proposed, or the "
            "option that answers it, as --ranks or --clients"
        ) from None
    write_file(out, text)
    output.lines(f"{out} written; play it with: florist simulate {out}")
    output.document({"config": str(out)})


def _ask(question: str, proposed: str | None) -> str:
    return typer.prompt(question, default=proposed, err=True)
