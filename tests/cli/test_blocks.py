"""Tables in terminals of any width: nothing that they say is cut."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.table import Table

from florist.cli import aggregate_table, compare_table, inspect_table, simulate_table
from florist.cli.output import Output, plain_table
from florist.cli.tune_table import Tuned
from florist.comparison.summary import summarise
from florist.data.partition import LabelCounts
from florist.linalg.spectrum import Spectrum
from florist.one_shot.inspection import ModuleView, SweepPoint
from florist.one_shot.tuning import Goal, Point
from tests.comparison.made import a_round, result

METRICS = {"perplexity": 12345.678, "exact_match": 0.125, "arc_challenge/acc_norm,none": 0.4375}
LAYERS = [f"base_model.model.model.layers.{k}.self_attn.q_proj" for k in (0, 31)]
RANKS = {tau: round(4096 * tau) for tau in (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)}
VIEW = ModuleView(Spectrum(torch.arange(20.0, 0, -1.0).double(), 1e-6, (4096, 11008)), 4096, RANKS, None)
RECORD = replace(a_round(75, METRICS, clients=16, dropped=3), held_back=0.5, relative_error=0.123, stack_bytes=10**9)
POINT = Point(0.9, {"q": 123456}, 2_345_678_901, 5.8e-05, METRICS | {"loss": 1.25})
RESULTS = [
    result(f"{name} with 4 bits", seed, {name: value + seed * 0.01 for name, value in METRICS.items()})
    for name in ("florist", "flexlora")
    for seed in range(3)
]


def of_layers(output: Output) -> Table:
    return inspect_table.kind_table({name.replace("31", "31.block"): VIEW for name in LAYERS}, output.fits)


TABLES: dict[str, Callable[[Output], Table]] = {
    "aggregate": lambda _: aggregate_table.module_table(
        {
            name: {"shape": [4096, 11008], "input_rank": 512, "rank": k, "energy_kept": 0.9, "relative_error": 5.8e-05}
            for k, name in enumerate(LAYERS)
        },
        every_module=True,
    ),
    "inspect --modules": lambda _: inspect_table.module_table(dict.fromkeys(LAYERS, VIEW)),
    "inspect": of_layers,
    "inspect --sweep": lambda _: inspect_table.sweep_table([SweepPoint(0.995, 123456, 2 * 10**9, 5.8e-05)] * 2),
    "simulate": lambda _: simulate_table.rounds_table(METRICS, [RECORD]),
    "simulate, examples": lambda _: simulate_table.examples_table(
        LabelCounts(
            ("client_0", "client_1"),
            tuple(f"{word} question answering of a kind" for word in ("open", "closed", "incomprehensibilities")),
            ((12, 0, 3456), (7, 8, 9)),
        )
    ),
    "compare": lambda _: compare_table.quality_table(summarise(RESULTS), "florist with 4 bits"),
    "compare, two seeds": lambda _: compare_table.quality_table(
        summarise([one for one in RESULTS if one.cell.seed < 2]), "florist with 4 bits"
    ),
    "compare, costs": lambda _: compare_table.cost_table(
        [
            replace(line, upload_bytes=1.2345e12, client_seconds=987654.3, total_rank=123456.7)
            for line in summarise(RESULTS)
        ]
    ),
    "tune": lambda _: Tuned(
        {}, Goal("loss", lower_is_better=True), (), False, (POINT,), POINT, POINT, "int4", {0.9: 234_567_890}
    ).table(),
}


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("name", TABLES)
def test_no_number_and_no_name_of_a_metric_is_cut(
    name: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    output = Output(as_json=False)
    table = TABLES[name](output)
    cells = {str(cell).strip() for column in table.columns[1:] for cell in column.cells}
    # The first column may be folded, and a label that is somebody's data as well.
    words = {word for column in table.columns[1:] if column.max_width is None for word in str(column.header).split()}
    firsts = ["".join(str(cell).split()) for cell in table.columns[0].cells]
    output.table(table)
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= columns
    lines = [f"  {line}  " for line in printed.splitlines()]
    assert {cell for cell in cells if not any(f" {cell} " in line for line in lines)} == set()
    assert {word for word in words if not any(f" {word} " in line for line in lines)} == set()
    letters = "".join("".join(line.strip().partition("  ")[0].split()) for line in lines)
    assert [first for first in firsts if first not in letters] == []


def test_what_fits_is_one_table_and_a_caption_is_not_as_narrow_as_its_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    table = plain_table("tau", "rank")
    table.add_row("0.9", "12")
    table.caption = "a caption that is longer than the table is wide"
    Output(as_json=False).table(table)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == ["tau", "rank"]
    assert lines[2:] == [["0.9", "12"], table.caption.split() if table.caption else lines[-1]]


def test_every_block_has_the_first_column_and_no_column_is_lost_or_doubled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = plain_table("round", *(f"metric {letter}" for letter in "abcdefghij"))
    for row in range(2):
        table.add_row(f"no{row}", *(f"{row}.{column:05d}" for column in range(10)))
    Output(as_json=False).table(table)
    printed = capsys.readouterr().out
    blocks = printed.count("no0")
    assert 1 < blocks == printed.count("no1") == printed.count("round")
    assert re.findall(r"0\.(\d{5})", printed) == [f"{column:05d}" for column in range(10)]


def test_a_table_of_one_long_column_is_folded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    table = plain_table("path")
    table.add_row("x" * 50)
    Output(as_json=False).table(table)
    assert capsys.readouterr().out.count("x") == 50
