"""Every tracker, in its own library: what was written is read back."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from florist.errors import MissingDependencyError
from florist.federation.history import RunDirectory
from florist.federation.records import FinalTest
from florist.tracking.bookmark import read_bookmarks
from florist.tracking.tracker import TrackedRun
from florist.tracking.trackers import require_installed
from florist.tracking.tracking import Tracking
from tests.stored_runs import FACTS, record, state

HYPERPARAMETERS: Mapping[str, str | int | float | bool] = {
    "lora.ranks": "[4, 2]",
    "federation.rounds": 4,
    "training.learning_rate": 0.001,
    "data.prompt_template": "a" * 7000,
    **{f"more.key{number}": True for number in range(120)},
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", "", FACTS)


Play = Callable[..., None]


def player(run: RunDirectory, *names: str, warnings: list[str] | None = None, **about: Any) -> Play:
    """Play rounds as a process does that begins or resumes a run, and is told which rounds to play."""

    def play(first: int, last: int, tested: FinalTest | None = None) -> None:
        tracked = TrackedRun(run.path, "project é", "the run", HYPERPARAMETERS, **about)
        warn = warnings.append if warnings is not None else pytest.fail
        with Tracking(tracked, names, warn=warn) as tracking:
            tracking.begin()
            for number in range(first, last + 1):
                run.save(state(number), record(number))
                tracking.closed(record(number))
            if tested is not None:
                run.save_tested(tested)

    return play


def expected(number: int) -> float:
    return record(number).relative_error


# --- TensorBoard


def events(run: RunDirectory) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return found


def test_tensorboard_reads_every_round_once(run: RunDirectory) -> None:
    play = player(run, "tensorboard")
    play(1, 2)
    # A process that is killed after it told the tracker and before it wrote that down tells it again.
    before = (run.path / "tracking.json").read_bytes()
    play(3, 3)
    (run.path / "tracking.json").write_bytes(before)
    play(4, 4, FinalTest({"loss": 0.5}, {"loss": True}))
    found = events(run)
    scalars = {each.step: each.value for each in found.Scalars("round/relative_error")}
    assert scalars == pytest.approx({number: expected(number) for number in (1, 2, 3, 4)}, rel=1e-6)
    assert len(scalars) == len(found.Scalars("round/relative_error"))
    assert found.Scalars("eval/loss")[0].step == 0
    assert [(each.step, each.value) for each in found.Scalars("test/loss")] == [(4, 0.5)]
    assert found.SummaryMetadata("_hparams_/session_start_info").plugin_data.plugin_name == "hparams"
    assert b"lora.ranks = [4, 2]" in found.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0]


# --- MLflow


def mlflow_runs(uri: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=str(uri))
    experiment = client.get_experiment_by_name("project é")
    assert experiment is not None
    return [client, *client.search_runs([experiment.experiment_id])]


@pytest.mark.slow
def test_mlflow_reads_every_round_once(run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play = player(run, "mlflow")
    play(1, 2)
    before = (run.path / "tracking.json").read_bytes()
    play(3, 3)
    (run.path / "tracking.json").write_bytes(before)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # the folder of the first time counts
    play(4, 4, FinalTest({"loss": 0.5}, {"loss": True}))
    client, found = mlflow_runs(tmp_path / "mlruns")
    history = client.get_metric_history(found.info.run_id, "round/relative_error")
    assert [(each.step, each.value) for each in history] == [(number, expected(number)) for number in (1, 2, 3, 4)]
    assert client.get_metric_history(found.info.run_id, "eval/loss")[0].step == 0
    assert [each.value for each in client.get_metric_history(found.info.run_id, "test/loss")] == [0.5]
    assert found.data.params["lora.ranks"] == "[4, 2]"
    assert len(found.data.params) == len(HYPERPARAMETERS)
    assert (found.info.run_name, found.info.status) == ("the run", "FINISHED")
    assert found.data.tags["florist.run"] == str(run.path)


def test_the_folder_of_mlflow_may_be_named(run: RunDirectory, tmp_path: Path) -> None:
    player(run, "mlflow", mlflow_uri=str(tmp_path / "store"))(1, 1)
    assert len(mlflow_runs(tmp_path / "store")) == 2


def test_a_run_that_stops_can_be_told_from_one_that_is_over(run: RunDirectory, tmp_path: Path) -> None:
    tracked = TrackedRun(run.path, "project é", "the run", {})

    def interrupted() -> None:
        with Tracking(tracked, ["mlflow"], warn=pytest.fail) as tracking:
            tracking.begin()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    _, found = mlflow_runs(tmp_path / "mlruns")
    assert found.info.status == "KILLED"


# --- Weights & Biases, offline


def wandb_messages(log: bytes) -> Iterator[bytes]:
    """The messages in a file of wandb: a LevelDB log, whose blocks of 32 KiB have records of a checksum, a length and a
    type (1: whole; 2, 3, 4: the first, a middle and the last part), after seven bytes of its own."""
    at, parts = 7, b""
    while at + 7 <= len(log):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        parts += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in {1, 4}:
            yield parts
            parts = b""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_writes_every_round_once_offline(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    play = player(run, "wandb")
    play(1, 2)
    time.sleep(1.1)  # wandb names its folders by the second
    play(3, 3, FinalTest({"loss": 0.5}, {"loss": True}))
    from wandb.proto.wandb_internal_pb2 import Record

    def messages() -> list[Any]:
        files = sorted((run.path / "wandb").glob("offline-run-*/*.wandb"))
        return [Record.FromString(each) for file in files for each in wandb_messages(file.read_bytes())]

    deadline = time.monotonic() + 30  # another process writes the files, and outlives the run for a moment
    while sum(each.HasField("exit") for each in messages()) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    rows = [
        {item.key or "/".join(item.nested_key): item.value_json for item in each.history.item}
        for each in messages()
        if each.HasField("history")
    ]
    ids = {each.run.run_id for each in messages() if each.HasField("run")}
    assert [float(row["round/relative_error"]) for row in rows if "round/relative_error" in row] == [
        expected(n) for n in (1, 2, 3)
    ]
    assert [int(row["_step"]) for row in rows] == [0, 1, 2, 3]
    assert ids == {read_bookmarks(run.path)["wandb"].place["run"]}


# --- trackio, whose library is too large to install for a test: a stand-in has the three functions


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[tuple[int, dict[str, float]]]]]:
    runs: dict[str, list[tuple[int, dict[str, float]]]] = {}

    def init(*, project: str, name: str, config: dict[str, Any], resume: str, embed: bool) -> Any:
        assert (project, resume, embed) == ("project é", "allow", False)
        assert config["federation.rounds"] == 4
        print("* Created new run")  # noqa: T201  # as trackio does
        kept = runs.setdefault(name, [])
        return SimpleNamespace(log=lambda metrics, step: kept.append((step, dict(metrics))), finish=lambda: None)

    module: Any = ModuleType("trackio")
    module.init = init
    module.__spec__ = ModuleSpec("trackio", None)
    monkeypatch.setitem(sys.modules, "trackio", module)
    return runs


def test_trackio_is_told_every_round_once(
    run: RunDirectory, trackio: dict[str, list[tuple[int, dict[str, float]]]], capsys: pytest.CaptureFixture[str]
) -> None:
    play = player(run, "trackio")
    play(1, 2)
    play(3, 3)
    ((name, logged),) = trackio.items()
    assert name.startswith("the run-")
    assert [step for step, _ in logged] == [0, 1, 2, 3]
    assert [values["round/relative_error"] for _, values in logged[1:]] == [expected(number) for number in (1, 2, 3)]
    assert capsys.readouterr().out == ""  # results of a command are on stdout


# --- what fails


def test_a_tracker_that_is_not_installed_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("florist.tracking.trackers.find_spec", lambda _: None)
    require_installed([])
    with pytest.raises(
        MissingDependencyError, match=r"Weights & Biases is not installed; .* pip install -e '\.\[wandb"
    ):
        require_installed(["wandb"])


@pytest.mark.slow
def test_a_tracker_that_fails_is_warned_of_once_and_told_later_what_it_missed(run: RunDirectory) -> None:
    warnings: list[str] = []
    tracked = TrackedRun(run.path, "project é", "the run", HYPERPARAMETERS)
    (run.path / "tensorboard").write_text("in the way")
    with Tracking(tracked, ["tensorboard", "mlflow"], warn=warnings.append) as tracking:
        tracking.begin()
        for number in (1, 2, 3):
            if number == 3:
                (run.path / "tensorboard").unlink()
            run.save(state(number), record(number))
            tracking.closed(record(number))
    assert len(warnings) == 1
    assert warnings[0].startswith("TensorBoard failed: ")
    assert "\n" not in warnings[0]
    assert [each.step for each in events(run).Scalars("round/relative_error")] == [1, 2, 3]
    assert read_bookmarks(run.path)["mlflow"].step == 3


def test_a_server_that_is_away_stops_nothing(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    warnings: list[str] = []
    player(run, "mlflow", warnings=warnings, mlflow_uri="http://127.0.0.1:9")(1, 2)
    assert len(warnings) == 1
    assert warnings[0].startswith("MLflow failed: ")
    assert len(run.records()) == 2


@pytest.mark.parametrize(
    ("spoil", "telling"),
    [
        (os.mkfifo, "found a FIFO"),
        (lambda file: file.symlink_to("/dev/zero"), "found a device"),
        (lambda file: file.write_text("[" * 50_000), "nested too deeply"),
        (lambda file: os.truncate(file, 1 << 40) if file.touch() is None else None, "expected at most 16777216 bytes"),
    ],
)
def test_a_bookmark_that_is_no_file_of_its_size_is_told(
    run: RunDirectory, spoil: Callable[[Path], object], telling: str
) -> None:
    spoil(run.path / "tracking.json")
    warnings: list[str] = []
    player(run, "tensorboard", warnings=warnings)(1, 1)
    assert len(warnings) == 1
    assert telling in warnings[0]
    assert "tracking.json" in warnings[0]


def test_a_damaged_bookmark_is_told_and_nothing_is_logged_twice(run: RunDirectory) -> None:
    player(run, "tensorboard")(1, 1)
    (run.path / "tracking.json").write_text('{"tensorboard": 3}')
    warnings: list[str] = []
    player(run, "tensorboard", warnings=warnings)(2, 2)
    assert len(warnings) == 1
    assert "tracking.json is not what florist writes; remove it" in warnings[0]
    assert [each.step for each in events(run).Scalars("round/relative_error")] == [1]


def test_without_trackers_nothing_is_written(run: RunDirectory) -> None:
    player(run)(1, 2)
    assert not (run.path / "tracking.json").exists()
