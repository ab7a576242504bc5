"""Comparisons that are really played, on a tiny model."""

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from florist.comparison.directory import ComparisonDirectory
from florist.comparison.planning import Cell, Entry, configure, method_entry
from florist.comparison.results import CellResult, read_result
from florist.comparison.running import Unobserved, plan, play
from florist.comparison.summary import summarise
from florist.errors import (
    ConfigurationError,
    DamagedRunError,
    DirectoryInUseError,
    MissingInputError,
    ModelError,
    WorkerLostError,
)
from florist.evaluation.harness import measurements_from
from florist.federation.records import FinalTest, RoundRecord
from florist.files.locking import sole_process
from florist.linalg import NonFinitePartError

CONFIG = """
[model]
name_or_path = "{model}"
[data]
path = "{data}"
partition = "iid"
validation_fraction = 0.2
test = "test.json"
prompt_template = "{{instruction}}\\n"
[lora]
ranks = [4, 4, 2]
target_modules = ["q_proj", "v_proj"]
[training]
learning_rate = 1e-2
batch_size = 4
steps = 2
threads = 1
[federation]
rounds = 2
fraction = 0.6
"""
FLORIST, FLORA, FEDIT = (method_entry(name) for name in ("florist", "flora", "fedit"))


@pytest.fixture(scope="module")
def base(tiny_llama: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("comparison") / "base.toml"
    file.write_text(CONFIG.format(model=tiny_llama, data=toy_data))
    return file


def started(
    base: Path, out: Path, entries: Sequence[Entry], seeds: Sequence[int] = (0,), *, overrides: Sequence[str] = ()
) -> ComparisonDirectory:
    common, configs = configure(base, overrides, entries)
    return ComparisonDirectory.create(out, plan(configs, seeds, threads=common.training.threads), common, configs)


@pytest.fixture(scope="module")
def played(base: Path, tmp_path_factory: pytest.TempPathFactory) -> ComparisonDirectory:
    out = tmp_path_factory.mktemp("played") / "out"
    directory = started(base, out, (FEDIT, FLORIST, FLORA), (0, 1))
    assert [result.failure for result in play(directory)] == [None] * 6
    return directory


@pytest.fixture(scope="module")
def results(played: ComparisonDirectory) -> dict[tuple[str, int], CellResult]:
    return {(result.cell.entry.name, result.cell.seed): result for result in play(played)}


def adapters(directory: ComparisonDirectory) -> dict[str, bytes]:
    return {
        str(file.relative_to(directory.path)): file.read_bytes()
        for file in sorted(directory.path.glob("cells/*/*/adapter/adapter_model.safetensors"))
    }


def clients(record: RoundRecord) -> list[tuple[str, int, int]]:
    return [(client.client_id, client.num_examples, client.rank) for client in record.clients]


@pytest.mark.slow
def test_every_cell_is_a_whole_run(played: ComparisonDirectory, results: dict[tuple[str, int], CellResult]) -> None:
    assert len(adapters(played)) == len(results) == 6
    for (name, seed), result in results.items():
        assert (result.failure, result.method, len(result.records)) == (None, name, 2)
        run = played.begun(result.cell)
        assert run is not None
        assert (run.facts.method, run.facts.threads) == (name, 1)
        assert f"seed = {seed}\n" in run.config_file.read_text()


@pytest.mark.slow
def test_runs_of_one_seed_are_paired(results: dict[tuple[str, int], CellResult]) -> None:
    for seed in (0, 1):
        alone = results["florist", seed].records
        for name in ("flora", "fedit"):
            other = results[name, seed].records
            assert [clients(record) for record in other] == [clients(record) for record in alone]
            # The first round starts from the base: same batches, same initial A, same losses.
            assert [client.loss for client in other[0].clients] == [client.loss for client in alone[0].clients]
            assert other[1].clients[0].loss != alone[1].clients[0].loss
    first, second = (results["florist", seed].records[0] for seed in (0, 1))
    assert [client.loss for client in first.clients] != [client.loss for client in second.clients]


@pytest.mark.slow
def test_metrics_are_those_of_the_test_records_and_validation_is_apart(
    results: dict[tuple[str, int], CellResult],
) -> None:
    for result in results.values():
        assert result.validation == result.records[-1].metrics
        assert result.metrics.keys() == result.validation.keys()
        assert result.metrics != result.validation


@pytest.mark.slow
def test_which_way_a_benchmark_gets_better_is_what_its_run_says(played: ComparisonDirectory, tmp_path: Path) -> None:
    shutil.copytree(played.path, tmp_path / "out")
    directory = ComparisonDirectory.open(tmp_path / "out")
    for cell in directory.comparison.cells:
        run = directory.begun(cell)
        assert run is not None
        assert run.tested is not None
        # Within the noise of a seed, FLoRA's stereotypes are the more.
        share = 0.6 + 0.001 * cell.seed + 0.1 * (cell.entry == FLORA)
        harness = measurements_from(
            {
                "results": {"crows_pairs_english": {"pct_stereotype,none": share, "odd,none": share}},
                "higher_is_better": {"crows_pairs_english": {"pct_stereotype": False}},
            }
        )
        lower_is_better = {**run.tested.lower_is_better, **harness.lower_is_better}
        run.save_tested(FinalTest({**run.tested.metrics, **harness}, lower_is_better))
    results = [read_result(directory, cell) for cell in directory.comparison.cells]
    lines = {line.name: line for line in summarise(results)}
    stereotypes, odd = (lines["flora"].metrics[f"crows_pairs_english/{name}"] for name in ("pct_stereotype", "odd"))
    assert stereotypes.difference is not None
    assert stereotypes.difference.sign == 1
    assert (stereotypes.lower_is_better, odd.lower_is_better) == (True, None)
    assert lines["flora"].metrics["loss"].lower_is_better


@pytest.mark.slow
def test_a_comparison_that_is_over_plays_nothing_again(played: ComparisonDirectory) -> None:
    seen: list[object] = []
    results = play(played, on_start=seen.append, on_end=seen.append)
    assert [result.cell for result in results] == [*played.comparison.cells]
    assert seen == []


@pytest.mark.slow
def test_a_comparison_that_another_process_plays_is_left_alone(played: ComparisonDirectory) -> None:
    before = adapters(played)
    with sole_process(played.path), pytest.raises(DirectoryInUseError, match="wait for that one"):
        play(played)
    assert adapters(played) == before


@pytest.mark.slow  # every process loads the libraries
def test_several_at_once_give_the_same_bits(base: Path, played: ComparisonDirectory, tmp_path: Path) -> None:
    directory = started(base, tmp_path / "out", (FEDIT, FLORIST), (0,))
    ended: list[CellResult] = []
    results = play(directory, jobs=2, on_end=ended.append)
    assert [result.failure for result in results] == [None, None]
    assert {one.cell for one in ended} == set(directory.comparison.cells)
    expected = adapters(played)
    found = adapters(directory)
    assert len(found) == 2
    assert found == {name: expected[name] for name in found}


class Interrupted(Unobserved):
    """Ctrl-C after the first round of the second run."""

    def __init__(self) -> None:
        self.rounds = 0

    def closed(self, record: RoundRecord) -> None:
        self.rounds += 1
        if self.rounds == 3:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_where_it_was(
    base: Path, played: ComparisonDirectory, tmp_path: Path
) -> None:
    directory = started(base, tmp_path / "out", (FEDIT, FLORIST, FLORA), (0,))
    with pytest.raises(KeyboardInterrupt):
        play(directory, observer=Interrupted())
    over = [cell.entry for cell in directory.comparison.cells if directory.is_over(cell)]
    assert over == [FEDIT]
    # What a run leaves that is killed while its directory is written.
    draft = tmp_path / "out" / "cells" / "flora" / ".seed-0.0123456789abcdef"
    draft.mkdir()
    seen: list[Cell] = []
    results = play(ComparisonDirectory.open(tmp_path / "out"), on_start=seen.append)
    assert [result.failure for result in results] == [None] * 3
    assert [cell.entry for cell in seen] == [FLORIST, FLORA]
    assert not draft.exists()
    expected = adapters(played)
    assert adapters(directory) == {name: expected[name] for name in adapters(directory)}
    run = directory.begun(Cell(FLORIST, 0))
    assert run is not None
    assert [record.round for record in run.records()] == [1, 2]


@pytest.mark.slow
def test_a_run_that_was_begun_with_other_settings_is_not_gone_on_with(base: Path, tmp_path: Path) -> None:
    directory = started(base, tmp_path / "out", (FEDIT, FLORIST), (0,))
    with pytest.raises(KeyboardInterrupt):
        play(directory, observer=Interrupted())
    begun = directory.begun(Cell(FLORIST, 0))
    assert begun is not None
    file = tmp_path / "out" / "cells" / FLORIST.folder / "config.toml"
    file.write_text(file.read_text().replace("steps = ", "steps = 1"))
    played = len(begun.records())
    result = next(each for each in play(ComparisonDirectory.open(tmp_path / "out")) if each.cell.entry == FLORIST)
    assert "training.steps" in (result.failure or "")
    assert len(begun.records()) == played


@pytest.mark.slow
def test_a_run_that_diverges_is_failed_and_the_others_go_on(base: Path, tmp_path: Path) -> None:
    wild = Entry("wild", ("training.learning_rate=1e38",))
    directory = started(base, tmp_path / "out", (wild, FLORIST), overrides=["federation.rounds=1"])
    found = {result.cell.entry: result for result in play(directory)}
    assert "too few usable updates" in (found[wild].failure or "")
    assert "NaN or inf" in (found[wild].failure or "")
    assert found[FLORIST].failure is None


@pytest.mark.slow
def test_a_run_that_breaks_off_is_failed_and_can_be_tried_again(base: Path, tmp_path: Path) -> None:
    directory = started(base, tmp_path / "out", (FLORA, FLORIST), overrides=["federation.rounds=1"])
    config = tmp_path / "out" / "cells" / "flora" / "config.toml"
    text = config.read_text()
    config.write_text(text.replace('test = "test.json"', 'test = "lost.json"'))
    flora, florist = play(directory)
    assert (flora.failure or "").startswith("MissingInputError: ")
    assert "lost.json" in (flora.failure or "")
    assert florist.failure is None
    assert "not come to its end" in (read_result(directory, flora.cell).failure or "")
    config.write_text(text)
    assert [result.failure for result in play(directory)] == [None, None]


@pytest.mark.slow
def test_why_a_run_broke_off_is_told_although_its_last_round_was_lost(base: Path, tmp_path: Path) -> None:
    wild = Entry("wild", ("training.learning_rate=1e38",))
    directory = started(base, tmp_path / "out", (wild,), overrides=["federation.rounds=1"])
    (lost,) = play(directory)
    assert (lost.failure or "").startswith("round 1, the last, had too few usable updates")
    config = tmp_path / "out" / "cells" / "wild" / "config.toml"
    text = config.read_text().replace("rounds = 1", "rounds = 2")
    config.write_text(text.replace('test = "test.json"', 'test = "lost.json"'))
    (broken,) = play(directory)
    assert [record.aggregated for record in broken.records] == [False]
    assert (broken.failure or "").startswith("MissingInputError: ")
    # What was not told and is not over has not come to its end, whatever became of the last round so far.
    assert "not come to its end" in (read_result(directory, broken.cell).failure or "")


@pytest.mark.parametrize(
    ("override", "cause", "reason"),
    [
        ("lora.target_modules=['nothing']", ModelError, "nothing"),
        ("model.name_or_path='/nowhere'", ModelError, "/nowhere"),
        ("federation.min_replies=3", ConfigurationError, "min_replies"),
    ],
)
@pytest.mark.quick(1)
def test_what_contradicts_model_or_data_is_refused_by_name_before_anything_runs(
    base: Path, override: str, cause: type[Exception], reason: str
) -> None:
    _, configs = configure(base, (), (FLORIST, Entry("wrong", (override,))))
    with pytest.raises(ConfigurationError, match=f"^wrong: .*{reason}") as refusal:
        plan(configs, (0, 1), threads=1)
    assert isinstance(refusal.value.__cause__, cause)


def test_an_error_that_takes_more_than_a_message_is_told_by_name_as_well(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(*_: object, **__: object) -> NoReturn:
        raise NonFinitePartError("the update overflows", 3)

    monkeypatch.setattr("florist.comparison.running.build", overflow)
    _, configs = configure(base, (), (FLORIST,))
    with pytest.raises(ConfigurationError, match=r"^florist: the update overflows$"):
        plan(configs, (0,), threads=1)


@pytest.mark.slow
def test_threads_are_one_where_several_run_at_once(base: Path) -> None:
    _, configs = configure(base, (), (FLORIST,))
    assert plan(configs, (0,), threads=None, jobs=2).threads == 1
    assert plan(configs, (0,), threads=3, jobs=2).threads == 3


@pytest.mark.slow  # threads that wait for a busy machine
def test_threads_are_measured_where_none_are_given(base: Path) -> None:
    _, configs = configure(base, (), (FLORIST,))
    assert plan(configs, (0,), threads=None).threads in {1, len(os.sched_getaffinity(0))}


@pytest.mark.slow  # every process loads the libraries
def test_a_process_that_is_killed_ends_the_comparison_with_what_to_do(base: Path, tmp_path: Path) -> None:
    directory = started(base, tmp_path / "out", (FLORA, FLORIST))
    with pytest.raises(WorkerLostError, match=r"memory runs out; go on in .*out with fewer than 2"):
        play(directory, jobs=2, in_worker=os.abort)
    assert not any(directory.is_over(cell) for cell in directory.comparison.cells)


def test_what_is_no_comparison_or_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"no comparison\.json"):
        ComparisonDirectory.open(tmp_path)
    (tmp_path / "comparison.json").write_text("{")
    with pytest.raises(DamagedRunError, match=r"reading its comparison\.json failed"):
        _ = ComparisonDirectory.open(tmp_path).comparison


@pytest.mark.parametrize("name", ["base.toml", "cells/florist/config.toml"])
@pytest.mark.quick(1)
def test_a_configuration_that_was_changed_before_its_runs_is_refused(base: Path, tmp_path: Path, name: str) -> None:
    directory = started(base, tmp_path / "out", (FLORA, FLORIST))
    directory.require_whole()
    file = directory.path / name
    before = file.read_text()
    file.write_text(before.replace("[training]", "[training]\nwarmup_ratio = 0.5\n"))
    with pytest.raises(DamagedRunError, match=rf"{name} is not as it was written.*restore the file"):
        directory.require_whole()
    file.unlink()
    with pytest.raises(DamagedRunError, match=rf"{name} is missing"):
        directory.require_whole()
    file.write_text(before)
    directory.require_whole()


@pytest.mark.slow
def test_a_comparison_of_an_earlier_florist_has_no_hashes_and_its_runs_do(base: Path, tmp_path: Path) -> None:
    directory = started(base, tmp_path / "out", (FLORIST,))
    plan_file = directory.path / "comparison.json"
    content = json.loads(plan_file.read_text())
    assert content.pop("files")
    plan_file.write_text(json.dumps(content))
    play(directory)
    directory.require_whole()
    file = directory.path / "cells" / "florist" / "config.toml"
    file.write_text(re.sub(r"(?m)^learning_rate = .*", "learning_rate = 0.5", file.read_text()))
    with pytest.raises(ConfigurationError, match=r"training\.learning_rate = 0\.5"):
        directory.require_whole()
