"""``florist report``: what it prints, what it leaves, what it refuses; and the page at the end of other commands."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

import florist.cli.report_libraries
from florist.federation.history import RunDirectory
from tests.reporting.made import a_run

from .running import Run, refused
from .test_commands import simulation


@pytest.fixture
def without_altair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        florist.cli.report_libraries, "find_spec", lambda name: None if name == "altair" else find_spec(name)
    )


def test_the_page_of_a_run_is_written_into_it_and_replaced(florist: Run, tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    before = {path.name for path in (tmp_path / "run").rglob("*")}
    for _ in range(2):
        result = florist("report", tmp_path / "run")
        assert (result.returncode, result.stdout) == (0, f"report in {tmp_path / 'run' / 'report.html'}\n")
    assert {path.name for path in (tmp_path / "run").rglob("*")} - before == {"report.html"}
    text = (tmp_path / "run" / "report.html").read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert "What it cost" in text


@pytest.mark.slow
def test_json_names_the_page_its_sections_and_its_figures(florist: Run, tmp_path: Path) -> None:
    a_run(tmp_path / "run", rounds=1, modules=2)
    words = ("-o", tmp_path / "page.html", "--figures", tmp_path / "figures", "--json")
    result = florist("report", tmp_path / "run", *words)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["report"] == str(tmp_path / "page.html")
    assert document["bytes"] == (tmp_path / "page.html").stat().st_size
    assert "bytes-loss" in document["figures"]
    assert sorted(document["files"]) == sorted(str(path) for path in (tmp_path / "figures").iterdir())
    assert not (tmp_path / "run" / "report.html").exists()


def test_the_page_of_an_aggregate_names_what_went_in(florist: Run, saved_adapters: list[Path], tmp_path: Path) -> None:
    assert florist("aggregate", *saved_adapters, "-o", tmp_path / "out", "--tau", "0.8").returncode == 0
    result = florist("report", tmp_path / "out", "--json")
    assert result.returncode == 0, result.stderr
    assert {"rank-by-layer", "error-by-layer", "rank-against-tau"} <= set(json.loads(result.stdout)["figures"])
    text = (tmp_path / "out" / "report.html").read_text()
    assert all(str(path) in text for path in saved_adapters)
    (tmp_path / "out" / "florist.json").write_text('{"modules": {"q_proj": {}}}')
    assert "q_proj lacks one" in refused(florist("report", tmp_path / "out"))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nowhere"], "a run, a comparison or an aggregate at nowhere"),
        (["run", "-o", "taken"], "taken already exists"),
        (["run", "--figures", "taken"], "taken already exists"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(
    florist: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    a_run(tmp_path / "run", rounds=1, modules=1)
    (tmp_path / "taken").mkdir()
    assert reason in refused(florist("report", *words))
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_damaged_run_is_refused(florist: Run, tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    (tmp_path / "run" / "config.toml").write_text("[model")
    assert "expected the configuration that the run in " in refused(florist("report", tmp_path / "run"))


def test_without_the_library_one_line_says_what_to_install(florist: Run, without_altair: None, tmp_path: Path) -> None:
    assert refused(florist("report", tmp_path)) == (
        "florist: florist report draws with Vega-Altair, which is not installed: "
        'pip install -e ".[report]" in a clone of florist'
    )


@pytest.mark.slow
def test_simulate_writes_the_page_at_its_end(florist: Run, tiny_llama: Path, toy_data: Path, tmp_path: Path) -> None:
    config = simulation(tmp_path, tiny_llama, toy_data)
    result = florist("simulate", config, "-o", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(f"report in {tmp_path / 'run' / 'report.html'}\n")
    # What the page needs was recorded as the run was played.
    run = RunDirectory.open(tmp_path / "run")
    counted = run.examples
    assert counted is not None
    assert (counted.clients, [sum(counts) for counts in counted.counts]) == (("client_0", "client_1"), [12, 24])
    (record,) = run.records()
    assert all(client.update_norm is not None and client.update_norm > 0 for client in record.clients)
    assert [len(line) for line in record.cosines] == [0, 1]
    assert run.facts.environment["torch"]
    result = florist("report", tmp_path / "run", "--json")
    assert {"examples", "update-norms", "cosines"} <= set(json.loads(result.stdout)["figures"])


def test_no_report_and_no_library_leave_the_run_alone(
    florist: Run,
    tiny_llama: Path,
    toy_data: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    config = simulation(tmp_path, tiny_llama, toy_data)
    assert "report.html" not in florist("simulate", config, "-o", tmp_path / "run", "--no-report").stdout
    request.getfixturevalue("without_altair")
    result = florist("simulate", "--resume", tmp_path / "run")
    assert result.returncode == 0
    assert "note: no report is written, since Vega-Altair is not installed: pip install" in result.stderr
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_compare_writes_the_page_at_its_end(florist: Run, tiny_llama: Path, toy_data: Path, tmp_path: Path) -> None:
    config = simulation(tmp_path, tiny_llama, toy_data)
    variants = [f"florist {tau}: aggregation.tau={tau}, communication.preset=plain" for tau in (0.5, 0.99)]
    words = [word for variant in variants for word in ("--variant", variant)]
    out = tmp_path / "out"
    result = florist("compare", config, "--methods", "fedit", *words, "--seeds", "1", "-o", out)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(f"report in {out / 'report.html'}\n")
    found = json.loads(florist("report", out, "--json").stdout)
    assert {"bytes-loss", "measured-rank-against-tau", "tau-loss"} <= set(found["figures"])
    assert "FLoRIST-O" in (out / "report.html").read_text()
    # A comparison that was interrupted has a page of what there is.
    shutil.rmtree(out / "cells" / "fedit" / "seed-0")
    assert florist("report", out).returncode == 0
    assert "has not come to its end" in (out / "report.html").read_text()
