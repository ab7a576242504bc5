"""The tables of compression (``benchmarks/communication.py``): their lines, and how they are told."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from benchmarks.communication import TABLES, Table, markdown
from benchmarks.table import CONFIG, ROOT

from florist.cli.compare_entries import entries_from
from florist.comparison.planning import configure
from florist.config import read_config

CONFIGS: dict[str, Path] = {
    "dolly": CONFIG,
    "chat": CONFIG,
    "categories": ROOT / "examples" / "dolly" / "categories.toml",
}
"""The configuration of a task; that of the string tasks is made when it is played."""


@pytest.mark.parametrize(
    "table", [each for each in TABLES.values() if each.task in CONFIGS], ids=lambda each: each.title
)
def test_every_line_is_a_configuration(table: Table) -> None:
    (first, rate), *others = table.entries
    settings = [*table.settings, f"training.learning_rate={rate}", "communication.preset=plain"]
    file = CONFIGS[table.task]
    entries = entries_from(first.method, [entry.variant(rate) for entry, rate in others], read_config(file))
    _, configs = configure(file, settings, entries)
    rates = {name: config.training.learning_rate for name, config in configs.items()}
    assert list(rates.values()) == [rate for _, rate in table.entries]


def line(name: str, megabytes: float, **metrics: float) -> dict[str, Any]:
    told = {
        metric: {"mean": mean, "low": None, "high": None, "count": 1, "difference": None, "verdict": None}
        for metric, mean in metrics.items()
    }
    bytes_each_way = {"download_bytes": megabytes * 5e5, "upload_bytes": megabytes * 5e5}
    return {"name": name, "metrics": told, **bytes_each_way}


def cells(lines: Sequence[dict[str, Any]]) -> list[list[str]]:
    rates = dict.fromkeys([each["name"] for each in lines], 1e-3)
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in markdown({"rows": lines}, rates)]


def test_lines_of_a_table() -> None:
    lines = [line("florist", 8, loss=1.5, perplexity=4.5, accuracy=0.25), line("int4", 1, loss=2, accuracy=0.5)]
    head, rule, plain, packed = cells([*lines])
    assert len(head) == len(rule) == len(plain) == len(packed)
    assert head[5] == "accuracy"
    assert plain == ["plain 0.9", "0.001", "1.5000", "", "", "0.250", "4.00", "4.00", "8.00", "1.0"]
    assert packed[-1] == "8.0"


def test_a_line_that_failed_is_as_wide_as_the_others() -> None:
    head, _, _, failed = cells([line("florist", 8, loss=1.5, accuracy=0.25), line("int4", 1)])
    assert failed[2] == "failed"
    assert len(failed) == len(head)
