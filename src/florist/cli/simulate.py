"""``florist simulate``: a federation in one process, from a configuration or the embedded demonstration."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from florist.cli.libraries import load_training_libraries
from florist.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from florist.cli.progress import Progress
    from florist.config import Config
    from florist.data.partition import LabelCounts
    from florist.federation.history import RunDirectory
    from florist.federation.records import RoundRecord
    from florist.federation.simulation import Simulation

RUNS = Path("runs")


def simulate_command(
    config_file: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.toml]", help="Configuration; without it, the demonstration.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key, as federation.rounds=2. May be repeated.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory to create for the run; by default one in runs/.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this directory.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Fine-tune with a federation of clients in one process: train, aggregate, evaluate, round by round.

    The base model is never changed; the result is one PEFT adapter. An interrupted run goes on with --resume and ends
    as if it had never stopped. Where no round had enough usable updates, there is no adapter, and the exit status is 1.
    """
    from rich.console import Console  # noqa: PLC0415  # keeps --help fast

    from florist.cli.progress import Progress  # noqa: PLC0415

    # A name in brackets is a name, and no markup.
    console, status = Console(stderr=as_json, markup=False), Console(stderr=True, markup=False)
    if resume is not None and (config_file is not None or overrides or out is not None):
        raise ConfigurationError("--resume goes on with a run as it was configured: give no CONFIG, --set or -o")
    with Progress(status) as progress:
        if resume is not None:
            simulation, directory = _resumed(resume, status)
        else:
            simulation, directory = _started(config_file, overrides or (), out, progress, status)
        try:
            records = progress.follow(simulation, directory)
        except KeyboardInterrupt:
            status.print(f"interrupted; go on with: florist simulate --resume {directory.path}")
            raise typer.Exit(130) from None
    facts = directory.facts
    tested = directory.tested
    console.print(_table(facts.initial, records))
    if tested is not None:
        values = ", ".join(f"{name} {value:.3f}" for name, value in tested.items())
        console.print(f"the final adapter on the test records: {values}", highlight=False)
    console.print(_totals(directory, records), soft_wrap=True)
    if as_json:
        from florist.files import strict_json  # noqa: PLC0415

        document = {
            "run": str(directory.path),
            "method": facts.method,
            "threads": facts.threads,
            "adapter": str(directory.adapter) if directory.adapter.exists() else None,
            "initial": {"metrics": dict(facts.initial)},
            "rounds": [asdict(record) for record in records],
            **({"test": {"metrics": dict(tested)}} if tested is not None else {}),
        }
        typer.echo(strict_json.encode(document))
    if not directory.adapter.exists():
        raise typer.Exit(1)


def _started(
    config_file: Path | None, overrides: Sequence[str], out: Path | None, progress: "Progress", status: "Console"
) -> tuple["Simulation", "RunDirectory"]:
    from florist.config import DEMONSTRATION, read_config, to_toml  # noqa: PLC0415
    from florist.files.outputs import require_absent  # noqa: PLC0415

    config_file = config_file or DEMONSTRATION
    config = read_config(config_file, overrides)
    path = out or free_run_name(config_file.stem)
    if out is not None:
        require_absent(path)
    simulation = _built(config, status)
    if out is None:
        path.parent.mkdir(exist_ok=True)
    directory = simulation.start(path, to_toml(config), config.aggregation.method, config.training.threads, progress)
    return simulation, directory


def _resumed(path: Path, status: "Console") -> tuple["Simulation", "RunDirectory"]:
    from florist.config import read_config  # noqa: PLC0415
    from florist.federation.history import RunDirectory  # noqa: PLC0415

    directory = RunDirectory.open(path)
    return _built(read_config(directory.config_file), status), directory


def _built(config: "Config", status: "Console") -> "Simulation":
    load_training_libraries("simulate")
    from florist.config.building import build  # noqa: PLC0415
    from florist.config.splits import read_splits, who_holds_what  # noqa: PLC0415

    splits = read_splits(config)
    simulation = build(config, splits)
    # Only now: what is refused is told in one line.
    picture = who_holds_what(config, splits)
    if picture is not None:
        status.print(_holdings(picture))
    return simulation


def free_run_name(stem: str) -> Path:
    """A directory in `RUNS` that does not exist yet.

    Raises:
        UnwritableOutputError: and cannot be created, or `RUNS` cannot.
    """
    from florist.files.outputs import require_absent  # noqa: PLC0415

    number = 1
    while (RUNS / f"{stem}-{number}").exists():
        number += 1
    path = RUNS / f"{stem}-{number}"
    require_absent(path if RUNS.is_dir() else RUNS)
    return path


SHADES = " ░▒▓█"
MAX_CLIENTS = 32


def _holdings(counted: "LabelCounts") -> "Table":
    """Who holds what: a row a client, a column a label; the shade is the label's share of the client's rows."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table("rows of", *counted.labels, "all", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in table.columns[1:]:
        column.justify, column.overflow, column.max_width = "right", "ellipsis", 12
    for client, counts in list(zip(counted.clients, counted.counts, strict=True))[:MAX_CLIENTS]:
        total = sum(counts)
        # Rounded up: whatever a client holds is to be seen.
        shades = [SHADES[min(4, -(-4 * count // total))] if count else SHADES[0] for count in counts]
        cells = [f"{count} {shade}" if count else "" for count, shade in zip(counts, shades, strict=True)]
        table.add_row(client, *cells, str(total))
    if len(counted.clients) > MAX_CLIENTS:
        table.add_row(f"and {len(counted.clients) - MAX_CLIENTS} more", *[""] * (len(counted.labels) + 1))
    return table


def _table(initial: Mapping[str, float], records: Sequence["RoundRecord"]) -> "Table":
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    names = [name.replace("_", " ") for name in initial]
    heads = ("round", *names, "clients", "rank", "FLoRA rank", "KB", "FLoRA KB", "s")
    table = Table(*heads, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in table.columns:
        column.justify = "right"
    table.add_row("0", *(f"{value:.3f}" for value in initial.values()), *[""] * 6)
    for record in records:
        table.add_row(
            str(record.round),
            *(f"{record.metrics[name]:.3f}" if name in record.metrics else "" for name in initial),
            f"{len(record.clients)}" + (f" ({len(record.dropped)} dropped)" if record.dropped else ""),
            _rank(record),
            str(record.input_rank) if record.input_rank else "",
            f"{record.broadcast_bytes / 1e3:.0f}",
            f"{record.stack_bytes / 1e3:.0f}" if record.input_rank else "",
            f"{record.seconds['total']:.1f}",
        )
    return table


def _rank(record: "RoundRecord") -> str:
    if not record.aggregated:
        return "none"
    return str(record.total_rank) if record.ranks else ""  # where weights are averaged, nothing has a rank


def _totals(directory: "RunDirectory", records: Sequence["RoundRecord"]) -> str:
    up, down = sum(r.upload_bytes for r in records), sum(r.download_bytes for r in records)
    sent = sum(r.broadcast_bytes for r in records)
    # Without adapters there is nothing that FLoRA could stack.
    stacks = sum(r.stack_bytes for r in records if r.input_rank)
    lines = [f"all clients together sent {up / 1e6:.2f} MB and received {down / 1e6:.2f} MB"]
    if sent:
        flora = f"; FLoRA's stacks of the same updates: {stacks / 1e3:.0f} KB ({stacks / sent:.1f} times as much)"
        lines.append(f"the broadcasts of all rounds, one copy: {sent / 1e3:.0f} KB{flora if stacks else ''}")
    lines += [
        f"{drop.client_id} dropped from round {record.round}: {drop.reason}"
        for record in records
        for drop in record.dropped
    ]
    adapter = (
        f"final adapter in {directory.adapter}"
        if directory.adapter.exists()
        else "no final adapter: no round had enough usable updates"
    )
    lines.append(f"records in {directory.path}/rounds.jsonl; {adapter}")
    return "\n".join(lines)
