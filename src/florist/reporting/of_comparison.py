"""The page of a comparison."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from florist.comparison.directory import ComparisonDirectory
from florist.comparison.intervals import Estimate, estimate
from florist.comparison.results import CellResult, read_result
from florist.comparison.summary import Line, Measured, reference, summarise
from florist.comparison.tables import metric_source
from florist.config import Config
from florist.files.reading import read_text
from florist.reporting import contributions
from florist.reporting.content import Block, Page, Section, Table, Text, filled
from florist.reporting.curves import (
    MOST_METRICS,
    Marked,
    Point,
    against_tau,
    by_round,
    metric_against_bytes,
    metric_by_round,
    with_direction,
)
from florist.reporting.figures import Figure, Row
from florist.reporting.numbers import MISSING, nbytes, number
from florist.reporting.of_run import adapter_spectra, update_blocks
from florist.reporting.operating_points import operating_points
from florist.reporting.reproducing import loading, reproducing


def page_of_comparison(path: Path) -> Page:
    """Make the page of a comparison, which may still go on.

    Args:
        path: its directory.

    Raises:
        MissingInputError, DamagedRunError, ConfigurationError: as `ComparisonDirectory` and `results.read_result`.
    """
    directory = ComparisonDirectory.open(path)
    plan = directory.comparison
    results = [read_result(directory, cell) for cell in plan.cells]
    lines = summarise(results)
    configs = {cell.entry.name: directory.config(cell) for cell in plan.cells}
    best = reference([line.name for line in lines])
    shown = next((r for r in results if r.cell.entry.name == best and r.failure is None), results[0])
    run, over = directory.run_path(shown.cell), directory.is_over(shown.cell)
    better = {name: lower for result in results for name, lower in result.lower_is_better.items()}
    metrics = _metrics(results)
    points = {metric: _points(directory, results, metric) for metric in metrics[:MOST_METRICS]}
    marks = operating_points(lines, {name: config.aggregation.tau for name, config in configs.items()})
    whose = f"{shown.cell.entry.name}, seed {shown.cell.seed}"
    sections = [
        Section(
            "result",
            "What was run, and did it work",
            [
                *_quality(lines, best, metric_source(directory.config(plan.cells[0]))),
                *_kept(metric_by_round(name, with_direction(name, better), of) for name, of in points.items()),
            ],
        ),
        Section(
            "cost",
            "What it cost",
            [
                _costs(lines),
                *_kept(
                    metric_against_bytes(name, with_direction(name, better), of, _marked(lines, of, marks.points))
                    for name, of in points.items()
                ),
                *([Text(marks.explanation)] if marks.points else []),
            ],
        ),
        Section(
            "update",
            "Where the update lives",
            [
                *update_blocks(
                    shown.records, adapter_spectra(run / "adapter") if over else {}, f"the adapter of {whose}"
                ),
                *_kept([_measured_ranks(lines, configs)]),
                *_kept(
                    _against_tau(name, with_direction(name, better), lines, configs) for name in metrics[:MOST_METRICS]
                ),
            ],
        ),
        Section("held-back", "What is held back", _held_back(results)),
        Section("clients", "Who contributed", _clients(results, shown, whose)),
        *([loading(run / "adapter")] if over else []),
        reproducing(
            "\n".join(
                f"florist simulate {file} --set federation.seed={plan.seeds[0]}"
                for file in (path / "cells" / entry.folder / "config.toml" for entry in plan.entries)
            ),
            {
                "florist": plan.florist,
                "seeds": ", ".join(map(str, plan.seeds)),
                "torch threads": str(plan.threads),
                **_environment(directory, shown),
            },
            {"The common configuration, defaults included": read_text(path / "base.toml")},
        ),
    ]
    failed = sum(len(line.failures) for line in lines)
    summary = (
        f"{len(lines)} entries over {len(plan.seeds)} {'seed' if len(plan.seeds) == 1 else 'seeds'}, "
        f"compared with {best}."
        + (f" {failed} of {len(results)} runs do not count, for the reasons below." if failed else "")
        + (" Two seeds say next to nothing of the spread." if len(plan.seeds) == 2 else "")
        + (" One seed says nothing of the spread." if len(plan.seeds) == 1 else "")
    )
    return Page(f"Comparison {path.name}", summary, filled(sections))


def _kept(found: Iterable[Figure | None]) -> list[Figure]:
    return [figure for figure in found if figure is not None]


def _metrics(results: Sequence[CellResult]) -> list[str]:
    return list(dict.fromkeys(name for result in results for record in result.records for name in record.metrics))


def _points(directory: ComparisonDirectory, results: Sequence[CellResult], metric: str) -> list[Point]:
    """The means over the seeds that count, by entry and round."""
    by_entry: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for result in results:
        if result.failure is not None:
            continue
        run = directory.begun(result.cell)
        measured = [run.facts.initial if run is not None else {}, *(record.metrics for record in result.records)]
        sent = [0.0, *accumulate(float(record.upload_bytes + record.download_bytes) for record in result.records)]
        rounds = by_entry.setdefault(result.cell.entry.name, {})
        for played, (values, traffic) in enumerate(zip(measured, sent, strict=True)):
            if metric in values and math.isfinite(values[metric]):
                rounds.setdefault(played, []).append((values[metric], traffic))
    return [
        Point(entry, played, value, sum(traffic for _, traffic in found) / len(found))
        for entry, rounds in by_entry.items()
        for played, found in sorted(rounds.items())
        if (value := estimate([each for each, _ in found])) is not None
    ]


def _marked(lines: Sequence[Line], points: Sequence[Point], named: Mapping[str, str]) -> list[Marked]:
    """The named entries at the end of their curves: FLoRIST-O and -E, and the methods that everybody knows."""
    known = {
        line.name: {"fedit": "FedIT", "flora": "FLoRA"}[line.method]
        for line in lines
        if line.method in {"fedit", "flora"}
    }
    ends = {point.series: point for point in points}  # the last of each
    labels = {**known, **named}
    return [
        Marked(label, ends[entry].traffic, ends[entry].value.mean) for entry, label in labels.items() if entry in ends
    ]


def _quality(lines: Sequence[Line], compared_with: str, source: str) -> list[Block]:
    names = list(dict.fromkeys(name for line in lines for name in line.metrics))
    tables: list[Block] = [
        Table(
            f"{name.replace('_', ' ')}, mean and 95% interval ({source})",
            ["entry", "seeds", "mean", "± 95%", f"against {compared_with}", "± 95%", "verdict"],
            [_cells(line, line.metrics[name]) for line in lines if name in line.metrics],
        )
        for name in names
    ]
    failures = [[line.name, str(seed), reason] for line in lines for seed, reason in line.failures.items()]
    if failures:
        tables.append(Table("Runs that do not count", ["entry", "seed", "reason"], failures))
    return tables


def _cells(line: Line, measured: Measured) -> list[str]:
    difference, verdict = measured.difference, measured.verdict
    return [
        line.name,
        str(measured.value.count),
        number(measured.value.mean),
        _width(measured.value),
        number(difference.mean, 3) if difference is not None else MISSING,
        _width(difference),
        verdict.value if verdict is not None else MISSING,
    ]


def _width(found: Estimate | None) -> str:
    # Over two seeds the factor of Student's t is 12.7: a number would be taken for a finding.
    if found is None or found.half_width is None:
        return MISSING
    return number(found.half_width, 2) if found.count > 2 else "two seeds say nothing"


def _costs(lines: Sequence[Line]) -> Table:
    return Table(
        "The cost of a run, all clients together, mean over the seeds",
        ["entry", "sent", "received", "both", "total rank", "efficiency x 1e4", "s aggregating", "s training"],
        [
            [
                line.name,
                nbytes(line.upload_bytes),
                nbytes(line.download_bytes),
                nbytes((line.upload_bytes or 0.0) + (line.download_bytes or 0.0)) if line.seeds else MISSING,
                number(line.total_rank),
                number(line.efficiency * 1e4 if line.efficiency is not None else None),
                number(line.server_seconds, 3),
                number(line.client_seconds, 3),
            ]
            for line in lines
        ],
    )


def _series(configs: Mapping[str, Config]) -> dict[str, str]:
    """The series of each entry that has a tau: entries that differ in tau alone are one series."""
    by_rest: dict[str, list[str]] = {}
    for name, config in configs.items():
        if config.aggregation.tau is not None:
            aggregation = config.aggregation.model_copy(update={"tau": None})
            rest = config.model_copy(update={"aggregation": aggregation}).model_dump_json()
            by_rest.setdefault(rest, []).append(name)
    several = [names for names in by_rest.values() if len(names) > 1]
    methods = [configs[names[0]].aggregation.method for names in several]
    return {
        name: method if methods.count(method) == 1 else f"{method}, as {names[0]}"
        for method, names in zip(methods, several, strict=True)
        for name in names
    }


def _measured_ranks(lines: Sequence[Line], configs: Mapping[str, Config]) -> Figure | None:
    series = _series(configs)
    rows: list[Row] = [
        {"series": series[line.name], "tau": configs[line.name].aggregation.tau, "value": line.total_rank}
        for line in lines
        if line.name in series
    ]
    return against_tau(
        "measured-rank-against-tau",
        "total rank of a broadcast against tau",
        "total rank",
        rows,
        "Entries that differ in tau alone: the mean over rounds and seeds of what was broadcast.",
    )


def _against_tau(metric: str, axis: str, lines: Sequence[Line], configs: Mapping[str, Config]) -> Figure | None:
    series = _series(configs)
    rows: list[Row] = []
    for line in lines:
        if line.name in series and metric in line.metrics:
            value = line.metrics[metric].value
            shown = value.count > 2
            rows.append(
                {
                    "series": series[line.name],
                    "tau": configs[line.name].aggregation.tau,
                    "value": value.mean,
                    "low": value.low if shown else None,
                    "high": value.high if shown else None,
                }
            )
    return against_tau(
        f"tau-{metric.replace('_', '-')}"[:40],
        f"{metric.replace('_', ' ')} against tau",
        axis,
        rows,
        "Entries that differ in tau alone, at the end of their runs. Bars are 95% intervals over the seeds.",
    )


def _held_back(results: Sequence[CellResult]) -> list[Block]:
    rows: list[Row] = []
    for result in results:
        if result.failure is None and result.cell.seed == results[0].cell.seed:
            rows += [
                {"series": result.cell.entry.name, "round": record.round, "value": record.held_back}
                for record in result.records
                if record.held_back > 0
            ]
    figure = by_round(
        "held-back",
        "norm of what the server holds back, by round",
        "Frobenius norm",
        rows,
        f"Of the runs of seed {results[0].cell.seed}. Entries that hold nothing back are not shown.",
    )
    return [figure] if figure is not None else []


def _clients(results: Sequence[CellResult], shown: CellResult, whose: str) -> list[Block]:
    found: list[Block | None] = [
        contributions.drops([(result.cell.name, result.records) for result in results]),
        contributions.update_norms(shown.records),
        contributions.cosines(shown.records),
    ]
    blocks = [block for block in found if block is not None]
    return [Text(f"The figures are of {whose}."), *blocks] if any(not isinstance(b, Table) for b in blocks) else blocks


def _environment(directory: ComparisonDirectory, result: CellResult) -> Mapping[str, str]:
    run = directory.begun(result.cell)
    return run.facts.environment if run is not None else {}
