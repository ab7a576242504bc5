from dataclasses import replace
from pathlib import Path

import pytest

from florist.config import read_config, to_toml
from florist.config.resuming import IN_ONE_PROCESS, OVER_FLOWER, require_resumable
from florist.errors import ConfigurationError, MissingInputError
from florist.federation.history import RunDirectory
from tests.stored_runs import FACTS, record, state

CONFIG = """
[model]
name_or_path = "model"
[data]
path = "data"
[lora]
ranks = [4, 2]
[federation]
rounds = 4
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text(CONFIG)
    return tmp_path / "config.toml"


@pytest.fixture
def run(file: Path, tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", to_toml(read_config(file)), FACTS)


SAME = ["federation.rounds=9", "evaluation.every=3", 'evaluation.metrics=["perplexity"]', "federation.seed=0"]
OF_FLOWER = ["flower.wait=3", "flower.evaluation=server", "data.path=elsewhere", "model.name_or_path=elsewhere"]


def test_rounds_and_evaluation_may_change(run: RunDirectory, file: Path) -> None:
    require_resumable(run, read_config(file), IN_ONE_PROCESS)
    require_resumable(run, read_config(file, SAME), IN_ONE_PROCESS)
    require_resumable(run, read_config(file, [*SAME, *OF_FLOWER]), OVER_FLOWER)


@pytest.mark.parametrize("change", OF_FLOWER)
def test_what_a_server_may_change_makes_the_result_of_a_simulation(change: str, run: RunDirectory, file: Path) -> None:
    with pytest.raises(ConfigurationError, match=change.partition("=")[0]):
        require_resumable(run, read_config(file, [change]), IN_ONE_PROCESS)


@pytest.mark.parametrize("may_change", [IN_ONE_PROCESS, OVER_FLOWER])
@pytest.mark.parametrize(
    ("change", "telling"),
    [
        ("federation.seed=1", "federation.seed = 1: expected 0, which the run in"),
        ("federation.fraction=0.5", "federation.fraction = 0.5: expected 1.0,"),
        ("federation.min_replies=1", "federation.min_replies = 1: expected none,"),
        ("federation.local_init=fresh", "federation.local_init = 'fresh': expected 'aligned',"),
        ("aggregation.tau=0.5", "aggregation.tau = 0.5: expected "),
        (
            "aggregation.method=flora",
            "aggregation.method = 'flora': expected 'florist'; aggregation.tau = none: expected 0.7",
        ),
        ("lora.ranks=[4, 4]", "lora.ranks = (4, 4): expected (4, 2),"),
        ("training.steps=3", "training.steps = 3: expected none,"),
        ("data.rows=1:", "data.rows = '1:': expected none,"),
        ("model.dtype=float16", "model.dtype = 'float16': expected 'float32',"),
    ],
)
def test_what_makes_the_result_may_not_change(
    change: str, telling: str, may_change: tuple[str, ...], run: RunDirectory, file: Path
) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        require_resumable(run, read_config(file, [change]), may_change)
    text = str(refusal.value)
    assert text.startswith(telling)
    assert f"may change {', '.join(may_change)} and nothing else" in text


def test_every_change_is_named(run: RunDirectory, file: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"lora\.ranks = 3: .*; federation\.seed = 7: expected 0, which the run"
    ):
        require_resumable(run, read_config(file, ["federation.seed=7", "lora.ranks=3", *SAME[:3]]), IN_ONE_PROCESS)


def test_what_was_changed_before_is_compared_with_the_beginning(run: RunDirectory, file: Path) -> None:
    run.save_config(to_toml(read_config(file, ["federation.seed=1"])))
    with pytest.raises(ConfigurationError, match=r"federation\.seed = 1: expected 0"):
        require_resumable(run, read_config(run.config_file), IN_ONE_PROCESS)
    run.save_config(to_toml(read_config(file, ["federation.rounds=6"])))
    require_resumable(run, read_config(run.config_file, ["federation.rounds=7"]), IN_ONE_PROCESS)


def test_fewer_rounds_than_were_played_are_refused(run: RunDirectory, file: Path) -> None:
    for number in (1, 2, 3):
        run.save(replace(state(number), round_number=number), record(number))
    require_resumable(run, read_config(file, ["federation.rounds=3"]), IN_ONE_PROCESS)
    with pytest.raises(ConfigurationError, match=r"federation\.rounds = 2: expected at least 3, which the run in"):
        require_resumable(run, read_config(file, ["federation.rounds=2"]), IN_ONE_PROCESS)


def test_a_run_without_its_beginning_is_told(run: RunDirectory, file: Path) -> None:
    run.begun_file.unlink()
    with pytest.raises(MissingInputError, match=r"begun\.toml"):
        require_resumable(run, read_config(file), IN_ONE_PROCESS)
