import csv
import json
from pathlib import Path

from florist.comparison.directory import ComparisonDirectory
from florist.comparison.planning import Comparison, Entry
from florist.comparison.summary import summarise
from florist.comparison.tables import comparison_document, write_tables

from .made import a_round, result


def test_files_hold_what_was_measured_and_are_strict(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text(
        '{"florist": "0", "entries": [{"name": "florist"}, {"name": "full"}], "seeds": [0, 1], "threads": 1}'
    )
    directory = ComparisonDirectory.open(tmp_path)
    assert directory.comparison == Comparison("0", (Entry("florist"), Entry("full")), (0, 1), 1)
    results = [
        result("full", 0, {"loss": 1.0}, records=(a_round(1, {"loss": 1.0}, with_ranks=False),)),
        result("florist", 0, {"loss": 1.5}),
        result("full", 1, {"loss": float("nan")}, failure="loss: not a finite number in the end"),
        result("florist", 1, {"loss": 1.7}),
    ]
    whole = comparison_document(directory, "test examples, last round", summarise(results), results)
    write_tables(directory, whole, results)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads((tmp_path / "table.json").read_text(), parse_constant=refuse)
    assert found == whole
    assert (found["comparison"], found["reference"]) == (str(tmp_path), "florist")
    full, florist = found["rows"]
    assert full["failures"] == {"1": "loss: not a finite number in the end"}
    assert full["metrics"]["loss"]["difference"] == {"mean": -0.5, "low": None, "high": None, "count": 1}
    assert full["total_rank"] is None
    assert florist["metrics"]["loss"]["count"] == 2
    assert florist["metrics"]["loss"]["lower_is_better"] is True
    assert [(cell["entry"], cell["seed"], cell["metrics"]) for cell in found["cells"]][1:3] == [
        ("florist", 0, {"loss": 1.5}),
        ("full", 1, {}),
    ]
    with (tmp_path / "table.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["entry"], line["seeds"], line["failed"], line["loss"]) for line in lines] == [
        ("full", "0", "1", "1.0"),
        ("florist", "0 1", "0", "1.6"),
    ]
    assert (lines[0]["total_rank"], lines[0]["loss_difference"], lines[0]["loss_difference_low"]) == ("", "-0.5", "")
    with (tmp_path / "cells.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["entry"], line["seed"], line["round"], line["total_rank"]) for line in lines] == [
        ("full", "0", "1", ""),
        ("florist", "0", "1", "10"),
        ("florist", "0", "2", "20"),
        ("full", "1", "1", "10"),
        ("full", "1", "2", "20"),
        ("florist", "1", "1", "10"),
        ("florist", "1", "2", "20"),
    ]


def test_an_entry_that_failed_first_does_not_hide_the_columns_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text('{"florist": "0", "entries": [], "seeds": [0], "threads": 1}')
    directory = ComparisonDirectory(tmp_path)
    results = [result("fedit", 0, {}, failure="no memory"), result("flora", 0, {"loss": 2.0})]
    write_tables(directory, comparison_document(directory, "", summarise(results), results), results)
    with (tmp_path / "table.csv").open() as stream:
        assert [line["loss"] for line in csv.DictReader(stream)] == ["", "2.0"]
