"""What ``florist compare`` prints of a comparison."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from florist.cli.output import plain_table
from florist.cli.summaries import number
from florist.comparison.intervals import FEWEST_VALUES, Estimate
from florist.comparison.summary import Line, Measured, Verdict
from florist.errors import one_line

QUALITY = "metrics on the {source}: mean ± 95% interval over seeds; differences are paired by seed"
FEW_SEEDS = (
    "metrics on the {source}: mean (lowest to highest) over seeds; differences are paired by seed. Intervals, and what "
    f"is better, need at least {FEWEST_VALUES} seeds"
)
COST = "cost: total rank of a broadcast; MB of a run, KB of a client in a round, seconds of a run; means over seeds"

_STYLES = {Verdict.BETTER: "green", Verdict.WORSE: "red", Verdict.TIED: "dim"}


def quality_heading(lines: Sequence[Line], source: str) -> str:
    """What the table of the metrics shows.

    Args:
        lines: the entries.
        source: what the metrics were measured on.
    """
    few = all(len(line.seeds) < FEWEST_VALUES for line in lines)
    return (FEW_SEEDS if few else QUALITY).format(source=source)


def quality_table(lines: Sequence[Line], reference: str) -> Table:
    """The metrics of every entry, and their paired differences to the reference."""
    metrics = list(dict.fromkeys(name for line in lines for name in line.metrics))
    heads: list[str] = []
    for name in metrics:
        heads += [words := name.replace("_", " "), f"{words} against {reference}"]
    table = _empty_table("seeds", *heads)
    for line in lines:
        cells: list[Text | str] = []
        for name in metrics:
            measured = line.metrics.get(name)
            cells += [_estimate(measured), _difference(measured)]
        runs = f"{len(line.seeds)}" + (f", {len(line.failures)} failed" if line.failures else "")
        table.add_row(Text(one_line(line.name)), runs, *cells)
    return table


def cost_table(lines: Sequence[Line]) -> Table:
    """What every entry sent and computed."""
    heads = ("rank", "last", "effic.", "MB up", "MB down", "KB up", "KB down", "server", "clients")
    table = _empty_table(*heads)
    for line in lines:
        table.add_row(
            Text(one_line(line.name)),
            _cost(line.total_rank, 1, ".1f"),
            _cost(line.last_total_rank, 1, ".1f"),
            _cost(line.efficiency, 1e-4, ".2f"),
            _cost(line.upload_bytes, 1e6, ".2f"),
            _cost(line.download_bytes, 1e6, ".2f"),
            _cost(line.client_upload_bytes, 1e3, ".1f"),
            _cost(line.client_download_bytes, 1e3, ".1f"),
            _cost(line.server_seconds, 1, ".2f"),
            _cost(line.client_seconds, 1, ".1f"),
        )
    return table


def notes(lines: Sequence[Line], path: Path) -> list[str]:
    """Say what the tables do not show, and where everything is."""
    found = [f"{line.name}, seed {seed} failed: {reason}" for line in lines for seed, reason in line.failures.items()]
    few = [line.name for line in lines if 0 < len(line.seeds) < FEWEST_VALUES]
    if any(len(line.seeds) >= FEWEST_VALUES for line in lines) and few:
        found.append(
            f"{', '.join(few)}: mean (lowest to highest): intervals, and what is better, need at least {FEWEST_VALUES} "
            "seeds"
        )
    unknown = {
        name for line in lines for name, one in line.metrics.items() if one.difference and one.lower_is_better is None
    }
    found += [f"{name}: nobody says which way it gets better, so that there is no verdict" for name in sorted(unknown)]
    found += [
        f"{line.name}: {line.lost_rounds} rounds had too few usable updates and changed nothing"
        for line in lines
        if line.lost_rounds
    ]
    if any(line.failures for line in lines):
        found.append(f"what broke off can be tried again: florist compare --resume {path}")
    return [*found, f"tables in {path}/table.csv, table.json and cells.csv; every run in {path}/cells"]


def feedback_notes(entries: Mapping[str, Sequence[str]]) -> list[str]:
    """Say which entries go without feedback and cuts that the configuration asks for.

    Args:
        entries: the names of entries, by the keys that they go without.
    """
    return [
        f"{', '.join(names)}: without {keys}, which the method cannot use; the codecs are the same for all"
        for keys, names in entries.items()
    ]


def _empty_table(*heads: str) -> Table:
    table = plain_table("", *heads)
    table.columns[0].no_wrap = True
    return table


def _estimate(measured: Measured | None) -> str:
    if measured is None:
        return ""
    return _mean(measured.value, number)


def _difference(measured: Measured | None) -> Text:
    if measured is None or measured.difference is None:
        return Text("")
    text = Text(_mean(measured.difference, lambda value: f"{value:+.3f}"))
    if measured.verdict is not None:
        text.append(f" {measured.verdict.value}", style=_STYLES[measured.verdict])
    return text


def _mean(found: Estimate, write: Callable[[float], str]) -> str:
    """A mean with its interval, or with the range of values that are too few for one."""
    mean = write(found.mean)
    if found.count >= FEWEST_VALUES and found.half_width is not None:
        return f"{mean} ± {number(found.half_width)}"
    return f"{mean} ({write(found.lowest)} to {write(found.highest)})" if found.count > 1 else mean


def _cost(value: float | None, unit: float, form: str) -> str:
    return format(value / unit, form) if value is not None else ""
