"""``florist simulate --resume``: what may change of a run that goes on, and what may not."""

import json
from pathlib import Path

import pytest

import florist as library
from florist.config import read_config, to_toml
from tests.federation.test_simulation import configure, run, weights

from .running import Run, refused


@pytest.fixture
def config(tiny_llama: Path, toy_data: Path, tmp_path: Path) -> Path:
    return configure(tmp_path, tiny_llama, toy_data, steps=2, rounds=1)


def test_a_run_that_has_ended_goes_on_with_more_rounds(florist: Run, config: Path, tmp_path: Path) -> None:
    path = run(config, tmp_path / "run", "data.validation_fraction=0.2").path
    first = weights(path)
    told = florist("simulate", "--resume", path, "--set", "federation.rounds=3", "--set", "evaluation.every=2")
    assert told.returncode == 0, told.stderr
    whole = run(config, tmp_path / "whole", "data.validation_fraction=0.2", "federation.rounds=3", "evaluation.every=2")
    assert weights(path) == weights(whole.path) != first
    assert (path / "adapter-round-0001" / "adapter_model.safetensors").read_bytes() == first
    assert (path / "test.json").read_text() == (whole.path / "test.json").read_text()
    assert (path / "test-round-0001.json").exists()
    lines = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    assert [(line["round"], bool(line["metrics"])) for line in lines] == [(1, True), (2, True), (3, True)]
    # The changes are written down, and hold for the next time.
    assert read_config(path / "config.toml").federation.rounds == 3
    assert read_config(path / "begun.toml").federation.rounds == 1
    again = florist("simulate", "--resume", path)
    assert again.returncode == 0
    assert weights(path) == weights(whole.path)


def test_what_makes_the_result_is_refused_by_name(florist: Run, config: Path, tmp_path: Path) -> None:
    path = run(config, tmp_path / "run").path
    before = (path / "config.toml").read_text()
    line = refused(
        florist("simulate", "--resume", path, "--set", "aggregation.tau=0.5", "--set", "federation.rounds=2")
    )
    assert "aggregation.tau = 0.5: expected " in line
    assert f"which the run in {path} was begun with" in line
    assert (path / "config.toml").read_text() == before
    # So is a configuration that was edited in the run's directory.
    (path / "config.toml").write_text(to_toml(read_config(path / "config.toml", ["federation.seed=1"])))
    assert "federation.seed = 1: expected 0, which the run in" in refused(florist("simulate", "--resume", path))


def test_a_run_of_an_older_florist_is_refused_by_name(florist: Run, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"florist": "0.0.9", "method": "florist", "threads": 1, "initial": {}}')
    line = refused(florist("simulate", "--resume", tmp_path))
    assert "got one that an earlier florist 0.0.9 wrote, before runs had a format number; begin another run" in line


def test_a_run_that_was_begun_from_code_says_how_it_goes_on(florist: Run, tiny_llama: Path, tmp_path: Path) -> None:
    clients = {"a": ["red is r", "blue is b"], "b": ["green is g", "red is r"]}
    training = {"steps": 1, "threads": 1}
    library.simulate(model=tiny_llama, clients=clients, ranks=2, rounds=1, training=training, out=tmp_path / "run")
    line = refused(florist("simulate", "--resume", tmp_path / "run"))
    assert "was begun from code, with objects that no file has; go on in Python with the same arguments" in line
    assert f"florist.simulate(..., out='{tmp_path / 'run'}', resume=True)" in line
