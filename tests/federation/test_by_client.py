"""Metrics on each client's own held-out examples: who has which, what is recorded, and what is said of it."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from florist.cli.simulate_table import clients_lines
from florist.config import read_config
from florist.config.building import build
from florist.config.splits import read_splits
from florist.errors import ConfigurationError
from florist.federation.by_client import last_evaluated, spreads
from florist.federation.records import RoundRecord
from tests.tiny_federation import PLAIN, configure, run


def record(number: int, by_client: Mapping[str, Mapping[str, float]]) -> RoundRecord:
    return RoundRecord(
        round=number,
        aggregated=True,
        metrics={},
        total_rank=0,
        input_rank=0,
        cumulative_rank=0,
        relative_error=0.0,
        ranks={},
        upload_bytes=0,
        download_bytes=0,
        broadcast_bytes=0,
        stack_bytes=0,
        clients=(),
        dropped=(),
        seconds={},
        client_metrics=by_client,
    )


MEASURED = record(
    2, {"a": {"loss": 1.0, "mine": 4.0}, "b": {"loss": 3.0, "mine": 2.0}, "c": {"loss": 2.0, "mine": 3.0}}
)


def test_mean_worst_and_spread() -> None:
    loss, mine = spreads(MEASURED, {"loss": True})
    assert (loss.mean, loss.worst, loss.worst_client, loss.lowest, loss.highest) == (2.0, 3.0, "b", 1.0, 3.0)
    assert loss.deviation == pytest.approx(math.sqrt(2 / 3))
    assert mine.worst_client == ""
    assert math.isnan(mine.worst)
    (higher, _) = spreads(record(1, {"a": {"accuracy": 0.5, "n": 1}, "b": {"accuracy": 0.9}}), {"accuracy": False})
    assert (higher.worst, higher.worst_client) == (0.5, "a")


def test_what_is_not_a_number_is_the_worst() -> None:
    (found,) = spreads(record(1, {"a": {"loss": 1e9}, "b": {"loss": math.nan}, "c": {"loss": 2.0}}), {"loss": True})
    assert found.worst_client == "b"


def test_the_last_round_that_was_measured_is_told_of() -> None:
    records = [MEASURED, record(3, {})]
    assert last_evaluated(records) is MEASURED
    assert last_evaluated(records[1:]) is None
    assert clients_lines(records[1:]) == []
    loss, mine = clients_lines(records)
    assert loss.startswith(
        "loss on each client's own examples after round 2: mean 2.000, worst 3.000 (b), from 1.000 to"
    )
    assert mine.endswith("after round 2: mean 3.000, from 2.000 to 4.000, deviation 0.816")


# Of 12 and 24 examples; the validation takes its share of what the test leaves.
HELD_OUT = {"test": {"client_0": 4, "client_1": 7}, "validation": {"client_0": 2, "client_1": 5}}


@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.quick(1)
def test_every_client_is_measured_on_what_it_held_out(
    tiny_llama: Path, toy_data: Path, tmp_path: Path, split: str
) -> None:
    file = configure(tmp_path, tiny_llama, toy_data, steps=1, rounds=3)
    file.write_text(file.read_text().replace('test = "test.json"', "test_fraction = 0.3\nvalidation_fraction = 0.3"))
    overrides = ["evaluation.by_client=true", "evaluation.every=2", f"evaluation.split={split}", PLAIN]
    config = read_config(file, overrides)
    splits = read_splits(config)
    own = splits.test_by_client if split == "test" else splits.validation_by_client
    assert {name: len(each) for name, each in own.items()} == HELD_OUT[split]
    assert [*own["client_0"], *own["client_1"]] == list(splits.test if split == "test" else splits.validation)
    directory = run(file, tmp_path / "run", *overrides)
    records = directory.records()
    assert [sorted(each.client_metrics) for each in records] == [[], ["client_0", "client_1"], ["client_0", "client_1"]]
    # Here every answer has as many tokens, so that the metric of all examples is the mean by their numbers.
    last, counts = records[-1], {name: len(each) for name, each in own.items()}
    mean = sum(counts[name] * each["loss"] for name, each in last.client_metrics.items()) / sum(counts.values())
    assert mean == pytest.approx(last.metrics["loss"], rel=1e-5)
    assert last.client_metrics["client_0"]["loss"] != last.client_metrics["client_1"]["loss"]


def test_a_file_for_all_is_nobodys_own(tiny_llama: Path, toy_data: Path, tmp_path: Path) -> None:
    file = configure(tmp_path, tiny_llama, toy_data)
    with pytest.raises(
        ConfigurationError, match=r"evaluation.by_client = true: expected test examples of every client's"
    ):
        build(read_config(file, ["evaluation.by_client=true"]))
    assert build(read_config(file, [])).client_metrics == {}
