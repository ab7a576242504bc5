"""The table of docs/peft.md: florist is exact or refuses in every row, and the page says what the script finds."""

import re
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from benchmarks.peft_merge import (
    CASES,
    LARGE,
    METHODS,
    SHOWN,
    Case,
    Cost,
    Outcome,
    cost_lines,
    measured,
    number,
    outcomes,
)

import florist.errors

PAGE = (Path(__file__).parents[1] / "docs" / "peft.md").read_text()
REFUSED = {
    '`bias="lora_only"` in one': "UnsupportedAdapterError",
    "DoRA": "UnsupportedAdapterError",
    "KaSA": "UnsupportedAdapterError",
    "a head in `modules_to_save`, unlike": "IncompatibleAdaptersError",
    "a head in `modules_to_save` in one": "IncompatibleAdaptersError",
    "a name that is taken": "ConfigurationError",
}


@cache
def row(name: str) -> dict[str, Outcome]:
    return outcomes(next(case for case in CASES if case.name == name))


def written(first: str) -> dict[str, list[str]]:
    """The rows of the page's table whose first heading is given, by their first cell."""
    lines = PAGE[PAGE.index(f"| {first} |") :].partition("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: row[1:] for row in [cells[0], *cells[2:]]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_florist_is_exact_or_refuses(case: Case) -> None:
    cell = row(case.name)["florist"]
    if case.name in REFUSED:
        assert cell == Outcome(raised=REFUSED[case.name])
        assert issubclass(getattr(florist.errors, cell.raised), florist.FloristError)
    else:
        assert cell.error is not None
        assert cell.reloaded is not None
        assert max(cell.error, cell.reloaded) < (1e-13 if case.dtype == torch.float64 else 1e-6)


def test_the_page_has_the_rows_and_columns_of_the_script() -> None:
    rows = written("adapters")
    assert rows.pop("adapters") == list(METHODS)
    assert list(rows) == [case.name for case in CASES]
    assert set(REFUSED) < set(rows)
    assert list(written("method")) == ["method", *LARGE]


@pytest.mark.skipif(f"PEFT {version('peft')}" not in PAGE, reason="docs/peft.md is about another version of PEFT")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_page_says_what_the_script_finds(case: Case) -> None:
    for told, cell in zip(written("adapters")[case.name], map(str, row(case.name).values()), strict=True):
        numbers, own = (re.findall(r"(?<![\w`])\d[\d.e-]*", text) for text in (told, cell))
        assert re.sub(r"\d[\d.e-]*", "N", told) == re.sub(r"\d[\d.e-]*", "N", cell)
        for one, other in zip(map(float, numbers), map(float, own), strict=True):
            assert max(one, other) < SHOWN or one == pytest.approx(other, rel=0.1), (told, cell)


def test_a_cell_says_what_became_of_the_merged_adapter() -> None:
    assert str(Outcome(raised="ValueError")) == "`ValueError`"
    assert str(Outcome(3.2e-8, reloaded=5e-8)) == "3e-08"
    assert str(Outcome(0.314, reloaded=0.3141)) == "0.31"
    assert str(Outcome(0.31, reloaded=0.5)) == "0.31; loaded again: 0.5"
    assert str(Outcome(0.81, reload_raised="RuntimeError")) == "0.81; loaded again: `RuntimeError`"
    assert number(1.8) == "1.8"
    assert cost_lines({"x": Cost(25.04, 301.2, 64, 0.0021)})[-1] == "| x | 64 | 0.0021 | 25 | 301 |"


def test_a_large_module_is_merged_by_every_method() -> None:
    size = 160  # above the sum of the ranks
    costs = {name: measured(name, size) for name in LARGE}
    assert [cost.rank for cost in costs.values()] == [64, 64, 64, 112, 112]
    cut = [cost.error for name, cost in costs.items() if cost.rank == 64]
    assert 1e-4 < cut[0] < 0.5
    assert cut == pytest.approx([cut[0]] * 3, rel=1e-3)
    assert all(cost.error < 1e-6 for cost in costs.values() if cost.rank == 112)
