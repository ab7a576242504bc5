"""The table on a real language model (``benchmarks/real.py``): its lines, and one command on a model of two layers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.real import EQUAL, FOLDER, GRIDS, RATES, SHORT, TABLES, Table, markdown, rate_of

from florist.cli.compare_entries import entries_from
from florist.comparison.planning import configure
from florist.config import read_config
from florist.config.methods import METHODS

ROOT = Path(__file__).parents[1]
DOLLY = ROOT.parent / "shared" / "data" / "dolly8"


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_every_line_is_a_configuration(table: Table) -> None:
    first, *others = table.entries
    file, settings = FOLDER / table.config, [*table.settings, f"training.learning_rate={rate_of(first)}"]
    entries = entries_from(first.method, [entry.variant(rate_of(entry)) for entry in others], read_config(file))
    _, configs = configure(file, settings, entries)
    assert [entry.name for entry in configs] == [entry.name for entry in table.entries]
    assert all(config.has_validation for config in configs.values())
    if table.entries != SHORT:
        left_out = {"fedsvd", "raflora", *(["full"] if table.entries == EQUAL else [])}
        assert {config.aggregation.method for config in configs.values()} == set(METHODS) - left_out


def test_a_rate_is_one_of_those_that_were_tried() -> None:
    assert RATES.keys() == GRIDS.keys()
    assert all(rate in GRIDS[name] for name, rate in RATES.items())


COSTS = {"total_rank": 100, "download_bytes": 2e6, "upload_bytes": 1e6, "client_seconds": 61.0, "server_seconds": 1.0}


def test_lines_of_the_table() -> None:
    loss = {"mean": 2.5, "low": 2.4, "high": 2.6, "count": 3, "difference": None, "verdict": None}
    worse = {**loss, "difference": {"mean": 0.02, "low": 0.01, "high": 0.03}, "verdict": "worse"}
    rows = [
        {"name": "florist", "metrics": {"loss": loss}, **COSTS},
        {"name": "full", "metrics": {"loss": worse}, **COSTS, "total_rank": None},
        {"name": "fedit", "metrics": {}},
    ]
    assert list(markdown(TABLES["unlike"], {"rows": rows}, {"florist": 0.25}))[2:] == [
        "| florist | 0.004 | 2.500 ± 0.100 |  |  | 2.00 | 1.00 | 100 | 61 | 1.0 | 0.250 |",
        "| full | 0.001 | 2.500 ± 0.100 | +0.020 ± 0.010 | worse | 2.00 | 1.00 |  | 61 | 1.0 |  |",
        "| fedit | 0.008 | failed | | | | | | | | |",
    ]


def test_two_seeds_are_told_one_by_one() -> None:
    loss = {"mean": 2.5, "low": 1.0, "high": 4.0, "count": 2, "difference": None, "verdict": "tied"}
    rows = [{"name": name, "metrics": {"loss": loss}, **COSTS} for name in ("florist", "full")]
    cells = [
        {"entry": name, "seed": seed, "metrics": {"loss": value}}
        for name, seed, value in (("florist", 0, 2.5), ("florist", 1, 2.6), ("full", 0, 2.45), ("full", 1, 2.61))
    ]
    cells.append({"entry": "full", "seed": 2, "metrics": {}})
    assert list(markdown(TABLES["unlike"], {"rows": rows, "cells": cells}, {}))[2:] == [
        "| florist | 0.004 | 2.500, 2.600 |  |  | 2.00 | 1.00 | 100 | 61 | 1.0 |  |",
        "| full | 0.001 | 2.450, 2.610 | -0.050, +0.010 |  | 2.00 | 1.00 | 100 | 61 | 1.0 |  |",
    ]


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.skipif(not DOLLY.is_dir(), reason=f"the Dolly clients are not at {DOLLY}")
def test_one_command_plays_a_table_and_asks_questions(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "model")
    asked = [{"question": f"What is {n} and {n}?", "choices": ["1", f"{2 * n}"], "answer": "B"} for n in range(2, 6)]
    (tmp_path / "questions.json").write_text(json.dumps(asked))
    small = {
        "data.chat_template": "false",
        "data.rows": "::100",
        "data.max_length": "32",
        "training.steps": "1",
        "federation.rounds": "1",
    }
    command = [sys.executable, ROOT / "benchmarks" / "real.py", "--only", "all-linear", "--seeds", "1"]
    command += ["--model", tmp_path / "model", "--data", DOLLY, "--out", tmp_path / "out"]
    command += ["--mmlu", tmp_path / "questions.json", *(f"--set={key}={value}" for key, value in small.items())]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert printed == (tmp_path / "out" / "real.md").read_text()
    rows = json.loads((tmp_path / "out" / "real.json").read_text())["all-linear"]["rows"]
    assert [row["name"] for row in rows] == [entry.name for entry in SHORT]
    answered = [json.loads(line) for line in (tmp_path / "out" / "mmlu.jsonl").read_text().splitlines()]
    assert len(answered) == 1 + len(SHORT)
    assert answered[0]["asked"]["adapter"] is None
    # A second call plays nothing, and asks nobody again.
    again = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert again.splitlines()[2:-1] == printed.splitlines()[2:-1]
    assert len((tmp_path / "out" / "mmlu.jsonl").read_text().splitlines()) == len(answered)
    # Other questions are asked anew.
    (tmp_path / "questions.json").write_text(json.dumps(asked[:2]))
    subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert len((tmp_path / "out" / "mmlu.jsonl").read_text().splitlines()) == 2 * len(answered)
