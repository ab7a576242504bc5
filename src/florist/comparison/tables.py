"""The tables of a comparison as files: one of the entries, for people and programs, and one of all rounds."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from florist.comparison.directory import ComparisonDirectory
from florist.comparison.intervals import Estimate
from florist.comparison.results import CellResult
from florist.comparison.summary import Line, Measured, reference
from florist.config import Config
from florist.files import strict_json
from florist.files.outputs import replace_file

_COLUMNS = tuple(
    field.name
    for field in fields(Line)
    if field.name not in {"name", "method", "seeds", "failures", "metrics", "validation"}
)
"""The attributes of a `Line` that are one number each."""


def metric_source(config: Config) -> str:
    """Say what the metrics of the table were measured on, and when."""
    if config.has_validation and config.evaluation.split != "test":
        return "test examples, final adapter"
    return "test examples, last round"


def comparison_document(
    directory: ComparisonDirectory, source: str, lines: Sequence[Line], results: Sequence[CellResult]
) -> dict[str, Any]:
    """Put the whole comparison into one JSON document, without NaN."""
    return {
        "comparison": str(directory.path),
        "reference": reference([line.name for line in lines]),
        "metric_source": source,
        "seeds": list(directory.comparison.seeds),
        "threads": directory.comparison.threads,
        "rows": [_summary(line) for line in lines],
        "cells": [_cell(directory, result) for result in results],
    }


def write_tables(directory: ComparisonDirectory, whole: Mapping[str, Any], results: Sequence[CellResult]) -> None:
    """Write table.json, table.csv and cells.csv, each whole, over those of an earlier attempt.

    Args:
        directory: the directory of the comparison.
        whole: what `comparison_document` returned.
        results: the results of all cells.
    """
    replace_file(directory.path / "table.json", strict_json.encode(whole, indent=2) + "\n")
    replace_file(directory.path / "table.csv", _csv([_flat(line) for line in whole["rows"]]))
    lines = [_line(result, number) for result in results for number in range(len(result.records))]
    replace_file(directory.path / "cells.csv", _csv(lines))


def _summary(line: Line) -> dict[str, Any]:
    return {
        "name": line.name,
        "method": line.method,
        "seeds": list(line.seeds),
        "failures": {str(seed): reason for seed, reason in line.failures.items()},
        "metrics": {name: _measured(measured) for name, measured in line.metrics.items()},
        "validation": {name: _measured(measured) for name, measured in line.validation.items()},
        **{name: getattr(line, name) for name in _COLUMNS},
    }


def _measured(measured: Measured) -> dict[str, Any]:
    return {
        **_estimate(measured.value),
        "difference": _estimate(measured.difference) if measured.difference is not None else None,
        "lower_is_better": measured.lower_is_better,
        "verdict": measured.verdict.value if measured.verdict is not None else None,
    }


def _estimate(found: Estimate) -> dict[str, Any]:
    return {"mean": found.mean, "low": found.low, "high": found.high, "count": found.count}


def _cell(directory: ComparisonDirectory, result: CellResult) -> dict[str, Any]:
    return {
        "entry": result.cell.entry.name,
        "seed": result.cell.seed,
        "run": str(directory.run_path(result.cell)),
        "failure": result.failure,
        # The metrics of a failed run may be no numbers.
        "metrics": dict(result.metrics) if result.failure is None else {},
        "total_rank": result.rank_of_a_round,
        "upload_bytes": result.upload_bytes,
        "download_bytes": result.download_bytes,
        "server_seconds": result.server_seconds,
        "client_seconds": result.client_seconds,
    }


def _flat(line: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {
        "entry": line["name"],
        "method": line["method"],
        "seeds": " ".join(map(str, line["seeds"])),
        "failed": len(line["failures"]),
    }
    for name, measured in line["metrics"].items():
        difference = measured["difference"] or {}
        flat |= {f"{name}{end}": measured[key] for end, key in _ENDS.items()}
        flat |= {f"{name}_difference{end}": difference.get(key) for end, key in _ENDS.items()}
        flat[f"{name}_verdict"] = measured["verdict"]
    return flat | {name: line[name] for name in _COLUMNS}


_ENDS = {"": "mean", "_low": "low", "_high": "high"}


def _line(result: CellResult, number: int) -> dict[str, Any]:
    record = result.records[number]
    # A 0 would look like a small rank where the method has none.
    rank = record.total_rank if record.aggregated and record.ranks else None
    return {
        "entry": result.cell.entry.name,
        "method": result.method,
        "seed": result.cell.seed,
        "round": record.round,
        "aggregated": record.aggregated,
        **record.metrics,
        "total_rank": rank,
        "relative_error": record.relative_error,
        "upload_bytes": record.upload_bytes,
        "download_bytes": record.download_bytes,
        "broadcast_bytes": record.broadcast_bytes,
        "clients": len(record.clients),
        "dropped": len(record.dropped),
        **{f"{phase}_seconds": seconds for phase, seconds in record.seconds.items()},
    }


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    # A line without metrics lacks their columns, and may be the first: the columns of the longest come first.
    longest = max(lines, key=len, default={})
    columns = [*dict.fromkeys(name for line in (longest, *lines) for name in line)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
