"""``florist compare``: methods and variants against each other, over several seeds."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from florist.cli.libraries import load_training_libraries
from florist.cli.simulate import free_run_name
from florist.errors import ConfigurationError
from florist.files import strict_json

if TYPE_CHECKING:
    from florist.cli.cells_bar import CellsBar
    from florist.comparison.directory import ComparisonDirectory
    from florist.comparison.planning import Entry
    from florist.comparison.results import CellResult
    from florist.config import Config

# A value may hold commas itself, as a list does: only before the next key does one end it.
_NEXT_KEY = re.compile(r",(?=\s*\w+\.\w+\s*=)")


def compare_command(
    config_file: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.toml]", help="Configuration; without it, the demonstration.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Aggregation methods, as florist,fedit,flora, or all. By default all, and with --variant that of the "
            "configuration."
        ),
    ] = None,
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            help="A further row, 'NAME: key=value, key=value' on top of the configuration, as 'florist 0.99: "
            "aggregation.tau=0.99'. May be repeated.",
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="How many, from the configuration's on, as 3; or which, as 0,5,7. By default 3.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once, each in a process of its own.")] = 1,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key for all, as federation.rounds=2. May be repeated.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory to create; by default one in runs/.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the comparison in this directory.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Compare aggregation methods, or any variants of a configuration, in the same federations.

    Every run of one seed has the same data, participants and batches. Differences are given with the 95% interval of
    their mean over the seeds. An interrupted comparison goes on with --resume. Where a run fails, the others go on, and
    the exit status is 1.
    """
    from rich.console import Console  # noqa: PLC0415  # keeps --help fast

    from florist.cli.cells_bar import CellsBar  # noqa: PLC0415

    console, status = Console(stderr=as_json, markup=False), Console(stderr=True, markup=False)
    if resume is not None and (config_file or methods or variants or seeds or overrides or out):
        raise ConfigurationError(
            "--resume goes on with a comparison as it was configured: give no CONFIG, --methods, --variant, --seeds, "
            "--set or -o"
        )
    from florist.config import DEMONSTRATION  # noqa: PLC0415

    with CellsBar(status) as bar:
        if resume is not None:
            directory = _opened(resume)
        else:
            directory = _created(
                config_file or DEMONSTRATION, overrides or (), methods, variants or (), seeds or "3", jobs, out
            )
        try:
            results = _play(directory, jobs, bar)
        except KeyboardInterrupt:
            status.print(
                f"interrupted; go on with: florist compare --resume {directory.path}", highlight=False, soft_wrap=True
            )
            raise typer.Exit(130) from None

    from florist.cli.compared import COST, QUALITY, cost_table, notes, quality_table  # noqa: PLC0415
    from florist.comparison.summary import reference, summarise  # noqa: PLC0415
    from florist.comparison.tables import document, metric_source, write_tables  # noqa: PLC0415

    rows = summarise(results)
    source = metric_source(directory.config(directory.comparison.cells[0]))
    whole = document(directory, source, rows, results)
    write_tables(directory, whole, results)
    console.print(QUALITY.format(source=source), highlight=False, soft_wrap=True)
    console.print(quality_table(rows, reference([row.name for row in rows])))
    console.print(COST, highlight=False, soft_wrap=True)
    console.print(cost_table(rows))
    for note in notes(rows, directory.path):
        console.print(note, highlight=False, soft_wrap=True)
    if as_json:
        typer.echo(strict_json.encode(whole))
    if any(row.failures for row in rows):
        raise typer.Exit(1)


def _opened(path: Path) -> "ComparisonDirectory":
    from florist.comparison.directory import ComparisonDirectory  # noqa: PLC0415

    directory = ComparisonDirectory.open(path)
    directory.comparison  # noqa: B018  # what is damaged is refused before the libraries are loaded
    load_training_libraries("compare")
    return directory


def _created(
    config_file: Path,
    overrides: Sequence[str],
    methods: str | None,
    variants: Sequence[str],
    seeds: str,
    jobs: int,
    out: Path | None,
) -> "ComparisonDirectory":
    from florist.comparison.planning import configure, seeds_from  # noqa: PLC0415
    from florist.config import read_config  # noqa: PLC0415
    from florist.files.outputs import require_absent  # noqa: PLC0415

    path = out or free_run_name(f"compare-{config_file.stem}")
    if out is not None:
        require_absent(path)
    entries = _entries(methods, variants, read_config(config_file, overrides))
    base, configs = configure(config_file, overrides, entries)
    numbers = seeds_from(seeds, base.federation.seed)
    load_training_libraries("compare")

    from florist.comparison.directory import ComparisonDirectory  # noqa: PLC0415
    from florist.comparison.running import plan  # noqa: PLC0415

    comparison = plan(configs, numbers, threads=base.training.threads, jobs=jobs)
    if out is None:
        path.parent.mkdir(exist_ok=True)
    return ComparisonDirectory.create(path, comparison, base, configs)


def _entries(methods: str | None, variants: Sequence[str], base: "Config") -> "list[Entry]":
    from florist.comparison.planning import Entry, method_entry  # noqa: PLC0415
    from florist.config.methods import METHODS  # noqa: PLC0415

    if methods is None and variants:
        entries = [Entry(base.aggregation.method)]
    else:
        names = [name.strip() for name in (methods or "all").split(",") if name.strip()]
        entries = [method_entry(name) for name in (METHODS if names == ["all"] else names)]
    return entries + [_variant(text) for text in variants]


def _variant(text: str) -> "Entry":
    from florist.comparison.planning import Entry  # noqa: PLC0415

    name, colon, rest = text.partition(":")
    overrides = tuple(part.strip() for part in _NEXT_KEY.split(rest) if part.strip())
    if not (colon and name.strip() and overrides):
        raise ConfigurationError(f"expected --variant 'NAME: section.key=value, section.key=value', got {text!r}")
    return Entry(name.strip(), overrides)


def _play(directory: "ComparisonDirectory", jobs: int, bar: "CellsBar") -> "list[CellResult]":
    from florist.comparison.running import play  # noqa: PLC0415

    bar.follow(directory)
    return play(
        directory,
        jobs=jobs,
        observer=bar,
        on_start=bar.started,
        on_end=bar.ended,
        in_worker=partial(load_training_libraries, "compare"),
    )
