"""Simulations, comparisons and federations over Flower that are tracked as their configuration says."""

import json
import sys
from pathlib import Path

import pytest

from florist.cli import main
from florist.comparison.directory import ComparisonDirectory
from florist.comparison.planning import Comparison, Entry
from florist.comparison.running import play
from florist.config import Config, read_config
from florist.config.sections import TrackingSection
from florist.config.tracking import hyperparameters
from florist.errors import ConfigurationError
from florist.federation.history import RunDirectory
from tests.flower.test_configured import serve
from tests.tiny_federation import configure
from tests.tracking.test_trackers import events


@pytest.fixture
def config(tiny_llama: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return configure(tmp_path, tiny_llama, toy_data, steps=1, rounds=2)


def simulate(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["florist", "simulate", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.mark.slow
def test_a_simulation_that_goes_on_is_one_run_for_its_tracker(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--set", "tracking.to=tensorboard", "--set", "data.validation_fraction=0.2", "-o", tmp_path / "run")
    assert simulate(monkeypatch, config, *words) == 0
    assert simulate(monkeypatch, "--resume", tmp_path / "run", "--set", "federation.rounds=3") == 0
    run = RunDirectory.open(tmp_path / "run")
    found = events(run)
    losses = {each.step: each.value for each in found.Scalars("eval/loss")}
    assert [each.step for each in found.Scalars("eval/loss")] == [0, 1, 2, 3]
    assert losses == pytest.approx(
        {0: run.facts.initial["loss"]} | {line.round: line.metrics["loss"] for line in run.records()}, rel=1e-6
    )
    assert run.tested is not None
    assert [each.step for each in found.Scalars("test/loss")] == [2, 3]  # it was over twice
    assert found.Scalars("test/loss")[-1].value == pytest.approx(run.tested.metrics["loss"], rel=1e-6)
    assert {"client_loss/client_0", "client_loss/client_1", "seconds/train"} <= set(found.Tags()["scalars"])
    notes = [line for line in capsys.readouterr().err.splitlines() if "note:" in line]
    assert notes == ["note: the run goes on with federation.rounds = 3 (begun with 2)"]


@pytest.mark.slow
def test_a_tracker_that_fails_is_a_note_and_the_run_is_whole(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    words = ("--set", "tracking.to=mlflow", "--set", "tracking.mlflow_uri=http://127.0.0.1:9")
    assert simulate(monkeypatch, config, *words, "-o", tmp_path / "run") == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: MLflow failed")]
    assert len(notes) == 1
    assert RunDirectory.open(tmp_path / "run").adapter.exists()


@pytest.mark.slow
def test_every_cell_of_a_comparison_is_a_run_of_its_own(config: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    base = read_config(config, ["tracking.to=mlflow", "federation.rounds=1"])
    entries = {
        entry: read_config(config, ["tracking.to=mlflow", "federation.rounds=1", *entry.overrides])
        for entry in (Entry("high", ("aggregation.tau=0.99",)), Entry("low", ("aggregation.tau=0.5",)))
    }
    comparison = Comparison("0", tuple(entries), (0,), 1)
    directory = ComparisonDirectory.create(tmp_path / "side by side", comparison, base, entries)
    assert [result.failure for result in play(directory)] == [None, None]
    client = MlflowClient(tracking_uri=str(tmp_path / "mlruns"))
    experiment = client.get_experiment_by_name("florist")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {f"side by side/{entry.folder}/seed-0" for entry in entries}
    assert {run.data.params["aggregation.tau"] for run in runs.values()} == {"0.99", "0.5"}


@pytest.mark.slow
@pytest.mark.parametrize("where", ["clients", "server", "none"])
def test_a_round_over_flower_is_told_once_with_what_was_measured(config: Path, tmp_path: Path, where: str) -> None:
    settings = {"flower.run": str(tmp_path / "run"), "flower.evaluation": where, "tracking.to": "tensorboard"}
    serve(config, settings)
    serve(config, {**settings, "federation.rounds": 3})
    run = RunDirectory.open(tmp_path / "run")
    found = events(run)
    assert [each.step for each in found.Scalars("round/clients")] == [1, 2, 3]
    if where != "none":
        losses = {each.step: each.value for each in found.Scalars("eval/loss") if each.step}
        assert losses == pytest.approx({line.round: line.metrics["loss"] for line in run.records()}, rel=1e-6)


# --- the section


def test_one_tracker_needs_no_brackets_and_a_wrong_one_is_named(config: Path) -> None:
    assert read_config(config).tracking.to == ()
    assert read_config(config, ["tracking.to=wandb"]).tracking.to == ("wandb",)
    assert read_config(config, ['tracking.to=["mlflow", "wandb"]']).tracking == TrackingSection(to=("mlflow", "wandb"))
    with pytest.raises(ConfigurationError, match="'tensorboard', 'mlflow', 'trackio' or 'wandb'"):
        read_config(config, ["tracking.to=neptune"])


def test_hyperparameters_are_flat_and_plain(config: Path) -> None:
    found = hyperparameters(read_config(config, ["tracking.run_name=x"]))
    assert found["lora.ranks"] == "[8, 4]"
    assert found["training.learning_rate"] == 1e-2
    assert not any(key.startswith("tracking.") for key in found)
    assert {key.partition(".")[0] for key in found} <= set(Config.model_fields)
    assert json.loads(str(found["lora.ranks"])) == [8, 4]
