"""Stopping early and the best round: by the records alone, and in a run that is interrupted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from florist.cli.output import Output
from florist.cli.simulate_table import totals
from florist.cli.simulate_work import report
from florist.config import read_config, to_toml
from florist.config.building import build
from florist.config.sections import FederationSection
from florist.errors import ConfigurationError
from florist.federation.choice_of_rounds import RoundChoice
from florist.federation.history import RunDirectory
from florist.federation.records import RoundRecord
from tests.stored_runs import record
from tests.tiny_federation import Silent, configure, run, weights

NAN = float("nan")


def records(*losses: float | None, unaggregated: tuple[int, ...] = ()) -> list[RoundRecord]:
    return [
        replace(record(k), aggregated=k not in unaggregated, metrics={} if loss is None else {"loss": loss})
        for k, loss in enumerate(losses, start=1)
    ]


@pytest.mark.parametrize(
    ("choice", "played", "best", "waited"),
    [
        (RoundChoice("loss", True), records(3, 2, 1), 3, 0),
        (RoundChoice("loss", True), records(3, 1, 2, 2), 2, 2),
        (RoundChoice("loss", False), records(3, 1, 2, 2), 1, 3),
        (RoundChoice("loss", True), records(2, 2, 2), 1, 2),
        # Rounds that were not evaluated are neither good nor waited for.
        (RoundChoice("loss", True), records(2, None, 3, None), 1, 1),
        # A margin says when to stop, and not what is best.
        (RoundChoice("loss", True, min_delta=0.5), records(2, 1.8, 1.6, 1.4), 4, 0),
        (RoundChoice("loss", True, min_delta=0.5), records(2, 1.8, 1.6), 3, 2),
        # A training that diverges has no value, and does not improve.
        (RoundChoice("loss", True), records(2, NAN, float("inf")), 1, 0),
        # Before a round changed something, the metric is that of the base.
        (RoundChoice("loss", True), records(1, 2, 3, unaggregated=(1,)), 2, 1),
        (RoundChoice("loss", True), records(1, 1, unaggregated=(1, 2)), None, 0),
        (RoundChoice("accuracy", False), records(1, 2), None, 0),
        (RoundChoice("loss", True), [], None, 0),
    ],
)
def test_the_best_round_and_the_evaluations_since_an_improvement(
    choice: RoundChoice, played: list[RoundRecord], best: int | None, waited: int
) -> None:
    assert choice.best(played) == best
    assert choice.waited(played) == waited
    assert not choice.stops(played)  # without patience
    assert [replace(choice, patience=n).stops(played) for n in (1, 2, 3)] == [waited >= n for n in (1, 2, 3)]


WORSE = "training.learning_rate=0.1"
"""After a good first round or so, the loss gets worse."""
CHOSEN = ("data.validation_fraction=0.2", "federation.rounds=6", WORSE)


@pytest.fixture(scope="module")
def config(tiny_llama: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return configure(tmp_path_factory.mktemp("chosen"), tiny_llama, toy_data, steps=3)


@pytest.fixture(scope="module")
def stopped(config: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("stopped")
    return run(config, folder / "run", *CHOSEN, "federation.early_stopping=2", "federation.best_round=true")


def test_a_run_stops_and_its_adapter_is_that_of_the_best_round(
    stopped: RunDirectory, config: Path, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in (stopped.path / "rounds.jsonl").read_text().splitlines()]
    losses = [line["metrics"]["loss"] for line in lines]
    best = 1 + losses.index(min(losses))
    assert len(lines) == best + 2 < 6
    assert lines[-1]["best_round"] == best
    assert [line["stopped"] for line in lines] == [False] * (len(lines) - 1) + [True]
    # It is bit for bit the adapter of a run that ends there.
    shorter = run(config, tmp_path / "run", *CHOSEN, f"federation.rounds={best}")
    assert weights(stopped.path) == weights(shorter.path)
    assert (stopped.path / "test.json").read_text() == (shorter.path / "test.json").read_text()
    assert json.loads((stopped.path / "adapter" / "florist.json").read_text())["round"] == best


def test_simulate_tells_why_the_rounds_stopped(stopped: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    report(stopped, Output(as_json=False))
    last = stopped.records()[-1]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stopped after")]
    assert line == (
        f"stopped after round {last.round}: no improvement in 2 evaluations; best round {last.round - 2}; the final "
        f"adapter is that of round {last.round - 2}"
    )


@pytest.mark.parametrize(
    ("keys", "stops", "expected"),
    [
        ({"early_stopping": 1}, True, "stopped after round 3: no improvement in 1 evaluation; best round 2"),
        (
            {"early_stopping": 2, "min_delta": 0.05},
            True,
            "stopped after round 3: no improvement of more than 0.05 in 2 evaluations; best round 2",
        ),
        ({"early_stopping": 2}, False, "best round 2"),
        ({"best_round": True}, False, "best round 2; the final adapter is that of round 2"),
    ],
)
def test_the_line_on_the_choice_of_rounds(
    stopped: RunDirectory, keys: dict[str, Any], stops: bool, expected: str
) -> None:
    played = [replace(line, best_round=min(line.round, 2)) for line in records(3, 1, 2)]
    played[-1] = replace(played[-1], stopped=stops)
    assert expected in totals(stopped, played, FederationSection(**keys), flushed=True)
    assert not [line for line in totals(stopped, records(3, 1), FederationSection(), flushed=True) if "best" in line]


@pytest.mark.slow
def test_an_interrupted_run_chooses_as_one_that_was_not(stopped: RunDirectory, config: Path, tmp_path: Path) -> None:
    class Interrupt(Silent):
        def closed(self, record: RoundRecord) -> None:
            raise KeyboardInterrupt

    chosen = read_config(config, [*CHOSEN, "federation.early_stopping=2", "federation.best_round=true"])
    directory = build(chosen).start(tmp_path / "run", to_toml(chosen), "florist", 1, Silent())
    for _ in stopped.records():
        with pytest.raises(KeyboardInterrupt):
            build(chosen).run(directory, Interrupt())
    build(chosen).run(RunDirectory.open(directory.path), Silent())  # plays nothing, and writes the result
    assert weights(directory.path) == weights(stopped.path)
    assert [(r.best_round, r.stopped) for r in directory.records()] == [
        (r.best_round, r.stopped) for r in stopped.records()
    ]


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["federation.best_round=true"], "set data.validation or data.validation_fraction"),
        (
            ["federation.early_stopping=2", "data.validation_fraction=0.2", "evaluation.split=test"],
            "a test that was chosen by is none",
        ),
        (["federation.min_delta=0.1"], "min_delta = 0.1 is for early_stopping"),
        (["federation.early_stopping=0"], "expected a number greater than 0"),
    ],
)
def test_a_choice_without_a_ground_is_refused(config: Path, overrides: list[str], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason.replace(".", r"\.")):
        read_config(config, overrides)


def test_questions_alone_cannot_choose(config: Path, toy_data: Path) -> None:
    asked = ["evaluation.metrics=['multiple_choice']", "evaluation.multiple_choice=q.json", *CHOSEN]
    with pytest.raises(ConfigurationError, match="which is a test: name another one first"):
        build(read_config(config, [*asked, "federation.best_round=true"]))
