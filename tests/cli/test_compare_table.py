"""What `florist compare` shows of runs that nobody played: its bars and its tables."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from florist.cli.compare_progress import CellsProgress
from florist.cli.compare_table import cost_table, notes, quality_heading, quality_table
from florist.cli.progress import Progress
from florist.comparison.directory import ComparisonDirectory
from florist.comparison.summary import summarise
from tests.comparison.made import a_round, result


@pytest.fixture
def directory(tmp_path: Path) -> ComparisonDirectory:
    (tmp_path / "comparison.json").write_text(
        '{"florist": "0", "entries": [{"name": "florist"}], "seeds": [0, 1], "threads": 1}'
    )
    return ComparisonDirectory.open(tmp_path)


def test_a_terminal_shows_bars(directory: ComparisonDirectory) -> None:
    stream = StringIO()
    with Progress(Console(file=stream, force_terminal=True, width=100), "checking") as progress:
        cells = CellsProgress(progress)
        cells.begin(directory)
        cells.started(directory.comparison.cells[0])
        cells.training(2, "client_1", 7, 25)
    assert "florist, seed 0, round 2: client_1 trains" in stream.getvalue()
    assert "7/25" in stream.getvalue()


def test_what_is_no_terminal_gets_a_line_a_run(directory: ComparisonDirectory) -> None:
    stream = StringIO()
    with Progress(Console(file=stream, width=100), "checking") as progress:
        cells = CellsProgress(progress)
        cells.begin(directory)
        cells.ended(result("florist", 0, {"loss": 1.25}))
        cells.ended(result("florist", 1, {}, failure="no memory"))
    assert stream.getvalue() == "1 of 2: florist, seed 0: loss 1.250\n2 of 2: florist, seed 1: failed: no memory\n"


def test_tables_of_every_method_fit_a_narrow_terminal(tmp_path: Path) -> None:
    methods = ("florist", "fedit", "flexlora", "full")
    results = [
        result(
            name,
            seed,
            {"loss": 1.5 + 0.1 * len(name)},
            records=(a_round(1, {}, with_ranks=name != "full"),),
        )
        for seed in range(3)
        for name in methods
    ]
    results.append(result("lost", 0, {}, failure="no memory"))
    lines = summarise(results)
    stream = StringIO()
    console = Console(file=stream, width=80)
    console.print(cost_table(lines))
    console.print(quality_table(lines, "florist"))
    printed = [line.split() for line in stream.getvalue().splitlines() if line.split()]
    costs = {line[0]: line[1:] for line in printed[2:7]}
    assert costs["florist"] == ["10.0", "10.0", "1000.00", "0.00", "0.00", "0.1", "0.1", "0.50", "6.0"]
    assert costs["full"] == costs["florist"][3:]
    assert costs["lost"] == []
    assert "…" not in stream.getvalue()
    quality = {line[0]: line[1:] for line in printed if line[0] in methods and "±" in line}
    assert quality["flexlora"] == ["3", "2.300", "±", "0.000", "+0.100", "±", "0.000", "worse"]
    assert quality["florist"] == ["3", "2.200", "±", "0.000"]
    assert "lost, seed 0 failed: no memory" in notes(lines, tmp_path)


@pytest.mark.parametrize(
    ("seeds", "row", "heading"),
    [
        (1, "flora 1 5.000 -2.000 1.000 +0.000", "need at least 3 seeds"),
        (
            2,
            "flora 2 5.005 (5.000 to 5.010) -2.000 (-2.000 to -2.000) 1.000 (1.000 to 1.000) +0.000 (+0.000 to +0.000)",
            "need at least 3 seeds",
        ),
        (3, "flora 3 5.010 ± 0.025 -2.000 ± 0.000 1.000 ± 0.000 +0.000 ± 0.000 tied", "95% interval"),
    ],
)
def test_a_metric_of_unknown_direction_has_no_verdict_and_too_few_seeds_have_no_interval(
    tmp_path: Path, seeds: int, row: str, heading: str
) -> None:
    lines = summarise(
        [
            result(name, seed, {"odd/score": len(name) + 0.01 * seed, "loss": 1.0})
            for name in ("florist", "flora")
            for seed in range(seeds)
        ]
    )
    stream = StringIO()
    Console(file=stream, width=120).print(quality_table(lines, "florist"))
    printed = [" ".join(line.split()) for line in stream.getvalue().splitlines()]
    assert row in printed
    assert heading in quality_heading(lines, "test examples")
    assert notes(lines, tmp_path)[0] == "odd/score: nobody says which way it gets better, so that there is no verdict"


def test_entries_with_too_few_seeds_beside_others_are_named(tmp_path: Path) -> None:
    results = [
        result(name, seed, {"loss": 1.0}) for name, seeds in (("florist", 3), ("cut", 2)) for seed in range(seeds)
    ]
    lines = summarise([*results, result("lost", 0, {}, failure="no memory")])
    assert "95% interval" in quality_heading(lines, "test examples")
    assert "cut: mean (lowest to highest): intervals, and what is better, need at least 3 seeds" in notes(
        lines, tmp_path
    )
