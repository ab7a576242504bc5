"""What ``florist watch`` does: it looks at a run again and again, and shows what is new."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from florist.cli.decisions import clients_of
from florist.cli.output import Output
from florist.cli.stopping import exit_status
from florist.cli.terminal import Terminal
from florist.cli.watch_table import Row, curve, line_of, rows_table, size
from florist.errors import MissingInputError, one_line
from florist.federation.damage import result_is_damaged
from florist.federation.following import Records, RunStatus, read_status, require_records, result_damage
from florist.federation.records import RoundRecord
from florist.files import strict_json

_FEW = 12
"""How many rounds are shown where the height of the terminal does not say."""


@dataclass(slots=True)
class _Run:
    """A run as far as it was read."""

    records: Records
    status: RunStatus | None = None
    rows: list[Row] = field(default_factory=list[Row])
    pending: RoundRecord | None = None
    damage: str | None = None

    @property
    def played(self) -> int:
        return self.rows[-1].round if self.rows else 0

    def look(self) -> Iterator[RoundRecord]:
        """Read what is new, and give the records that are complete; one at a time, since there may be many.

        Over Flower a round is recorded before its clients have measured it. A record without metrics is therefore
        complete once another follows or the run is over.
        """
        first = self.status is None
        self.status = read_status(self.records.run)
        if self.status is None:
            return
        if first:
            require_records(self.records.run)
        for record in self.records.new(self.status.record):
            while self.rows and self.rows[-1].round >= record.round:
                self.rows.pop()
            self.rows.append(Row.of(record))
            if self.pending is not None and self.pending.round < record.round:
                yield self.pending
            self.pending = record if not record.metrics else None
            if record.metrics:
                yield record
        if not self.over:
            return
        if self.pending is not None:
            yield self.pending
            self.pending = None
        damage = result_damage(self.records.run)
        self.damage = result_is_damaged(self.records.run, damage) if damage is not None else None

    @property
    def over(self) -> bool:
        ended = bool(self.rows) and self.rows[-1].ends
        return self.status is not None and self.status.is_over(self.played, ended=ended)


def show_once(path: Path, output: Output, *, as_json: bool) -> None:
    """Print how far a run is.

    Args:
        path: the directory of the run.
        output: where to say, beside records, that its result is damaged.
        as_json: print the records themselves.

    Raises:
        MissingInputError: there is none.
        DamagedRunError: it cannot be read.
    """
    run, console = _Run(Records(path)), Terminal()
    for record in run.look():
        if as_json:
            _print_json(record)
    if run.status is None:
        raise MissingInputError(
            f"expected the directory of a run at {path}, found nothing; without --once it is awaited"
        )
    if as_json and run.pending is not None:
        _print_json(run.pending)
    elif not as_json:
        console.print(_picture(run, console, len(run.rows) + 1))
    if as_json and run.damage is not None:
        output.note(run.damage)


def follow(path: Path, interval: float, output: Output, *, as_json: bool) -> None:
    """Show a run until it is over.

    Args:
        path: the directory of the run, which is awaited where there is nothing.
        interval: seconds between two looks.
        output: where to say that the run is awaited, and, where stdout is no terminal, what every client did.
        as_json: print the records themselves.

    Raises:
        MissingInputError: there is something else at the path.
        DamagedRunError: the run cannot be read.
        Exit: the user has seen enough.
    """
    run, console = _Run(Records(path)), Terminal()
    try:
        if read_status(path) is None:
            output.note(f"waiting for a run in {path}")
            while read_status(path) is None:
                time.sleep(interval)
        if as_json or not console.is_terminal:
            _print_lines(run, interval, console, output, as_json=as_json)
        else:
            _draw(run, interval, console)
    except KeyboardInterrupt as stop:
        raise typer.Exit(exit_status(stop)) from None


def _print_lines(run: _Run, interval: float, console: Terminal, output: Output, *, as_json: bool) -> None:
    printed, begun = 0, False
    while True:
        for record in run.look():
            if not begun and not as_json:
                _print_start(run, console)
                begun = True
            if record.round <= printed:
                continue  # it was rewritten after it was printed
            printed = record.round
            output.detail(*clients_of(record))
            if as_json:
                _print_json(record)
            else:
                console.print(line_of(Row.of(record)), soft_wrap=True)
        if run.over:
            break
        time.sleep(interval)
    if not as_json:
        for line in _end(run):
            console.print(line, soft_wrap=True)
    elif run.damage is not None:
        output.note(run.damage)


def _print_json(record: RoundRecord) -> None:
    print(strict_json.encode(asdict(record)), flush=True)  # noqa: T201  # rich would break long lines


def _print_start(run: _Run, console: Terminal) -> None:
    if run.status is not None and run.status.initial:
        console.print(line_of(Row(0, run.status.initial)), soft_wrap=True)


def _draw(run: _Run, interval: float, console: Terminal) -> None:
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        before: tuple[object, ...] | None = None
        while True:
            for _ in run.look():
                pass  # the rows have it
            now = (run.status, len(run.rows), run.rows[-1:], console.size)
            if now != before:
                live.update(_picture(run, console), refresh=True)
                before = now
            if run.over:
                break
            time.sleep(interval)


def _picture(run: _Run, console: Terminal, count: int | None = None) -> RenderableType:
    """The table of the last rounds, the curve, and how far the run is."""
    status = run.status
    if status is None:
        return Text("the run is gone")
    names = [*status.initial, *(name for row in run.rows for name in row.metrics)]
    metric = names[0] if names else "metric"
    rows = [Row(0, status.initial), *run.rows] if status.initial else run.rows
    curve_lines = list(curve([row.metrics[metric] for row in rows if metric in row.metrics], min(console.width, 72)))
    tail = [*(run.rows[-1].dropped + run.rows[-1].clipped if run.rows else ())][:3]
    end = _end(run)
    room = max(3, console.height - len(curve_lines) - len(tail) - len(end) - 6)
    shown = rows[-min(room, _FEW) :] if count is None else rows
    head = f"{run.records.run}, {status.method}: {metric.replace('_', ' ')} of {len(run.rows)} rounds"
    above, below = ([Text(one_line(line)) for line in lines] for lines in ([head, *curve_lines], [*tail, *end]))
    return Group(*above, rows_table(metric, shown), *below)


def _end(run: _Run) -> Sequence[str]:
    """The last lines: what was sent in all, and whether more is to come."""
    status = run.status
    if status is None:
        return []
    up, down = sum(row.upload_bytes for row in run.rows), sum(row.download_bytes for row in run.rows)
    of = f" of {status.rounds}" if status.rounds is not None else ""
    lines = [f"round {run.played}{of}: all clients together sent {size(up)} and received {size(down)}"]
    if status.test is not None and run.over:
        values = ", ".join(f"{name} {value:.3f}" for name, value in status.test.metrics.items())
        lines.append(f"the final adapter on the test examples: {values}")
    if run.over:
        adapter = run.records.run / "adapter"
        found = f"the final adapter is in {adapter}" if status.has_adapter else "no adapter"
        lines.append(f"the run is over; {run.damage or found}")
    elif not status.at_work:
        lines.append("no process is at work in it: it was interrupted, or is about to begin")
    elif status.rounds is not None and run.played >= status.rounds:
        lines.append("all rounds are played; the final adapter is still to come")
    return lines
