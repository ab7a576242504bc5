"""The measured table: its lines are configurations that florist takes, and its one command writes what it says."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.table import CONFIG, ENTRIES, FEDERATIONS, GRID, QUICK, SWEEP, Federation, interval, markdown

from florist.cli.compare_entries import entries_from
from florist.comparison.planning import configure
from florist.config import read_config
from florist.config.methods import METHODS

ROOT = Path(__file__).parents[1]
DOLLY = ROOT.parent / "shared" / "data" / "dolly8"


@pytest.mark.parametrize("federation", FEDERATIONS.values(), ids=list(FEDERATIONS))
def test_every_method_has_a_line_and_every_line_is_a_configuration(federation: Federation) -> None:
    first, *others = ENTRIES
    settings = [f"lora.ranks={federation.ranks}", f"training.learning_rate={federation.rate(first)}", *QUICK.settings]
    variants = [entry.variant(federation.rate(entry)) for entry in others]
    entries = entries_from(first.method, variants, read_config(CONFIG, settings))
    _, configs = configure(CONFIG, settings, entries)
    assert {config.aggregation.method for config in configs.values()} == set(METHODS) - {
        "linear",
        "fedsvd",
        "raflora",
    }  # which came later
    rates = {entry.name: config.training.learning_rate for entry, config in configs.items()}
    assert rates == {entry.name: federation.rate(entry) for entry in ENTRIES}


@pytest.mark.parametrize("federation", FEDERATIONS.values(), ids=list(FEDERATIONS))
def test_a_rate_is_one_of_those_that_were_tried_on_validation_records(federation: Federation) -> None:
    assert read_config(CONFIG, SWEEP).has_validation
    assert not read_config(CONFIG).has_validation
    assert {federation.rate(entry) for entry in ENTRIES} <= set(GRID)


def test_lines_of_the_table() -> None:
    costs = {"download_bytes": 2e6, "client_download_bytes": 5e4, "upload_bytes": 1e6}
    loss = {"mean": 3.5, "low": 3.4, "high": 3.6, "difference": None, "verdict": None}
    worse = {**loss, "difference": {"mean": 0.02, "low": 0.01, "high": 0.03}, "verdict": "worse"}
    lines = [
        {"name": "florist", "metrics": {"loss": loss}, "total_rank": 100, "efficiency": 0.01, **costs},
        {"name": "full", "metrics": {"loss": worse}, "total_rank": None, "efficiency": None, **costs},
        {"name": "broken", "metrics": {}},
    ]
    assert list(markdown(lines, dict.fromkeys(("florist", "full", "broken"), 1e-2)))[2:] == [
        "| florist | 0.01 | 3.500 ± 0.100 |  |  | 100 | 1.0e-02 | 50 | 2.00 | 1.00 |",
        "| full | 0.01 | 3.500 ± 0.100 | +0.020 ± 0.010 | worse |  |  | 50 | 2.00 | 1.00 |",
        "| broken | 0.01 | failed | | | | | | | |",
    ]
    assert interval({"mean": 3.5, "low": None, "high": None}, ".3f") == "3.500"


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.skipif(not DOLLY.is_dir(), reason=f"the Dolly clients are not at {DOLLY}")
def test_one_command_writes_both_tables(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "model")
    command = [sys.executable, ROOT / "benchmarks" / "table.py", "--quick", "--out", tmp_path, "--data", DOLLY]
    settings = ["data.rows=::100", "training.steps=1", 'lora.target_modules=["q_proj"]', "data.max_length=16"]
    command += [f"--set={setting}" for setting in settings]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert printed == (tmp_path / "table.md").read_text()
    whole = json.loads((tmp_path / "table.json").read_text())
    for name in FEDERATIONS:
        assert [line["name"] for line in whole[name]["rows"]] == [entry.name for entry in ENTRIES]
        assert all(line["metrics"]["loss"]["count"] == 2 for line in whole[name]["rows"])
