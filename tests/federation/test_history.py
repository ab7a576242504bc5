import json
import math
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from florist.errors import DamagedRunError, MissingInputError, OutputExistsError
from florist.factors import AdapterState, LoraFactor
from florist.federation.history import RunDirectory, RunFacts
from florist.federation.records import ClientRecord, Drop, RoundRecord
from florist.federation.state import ServerState
from florist.rounds import NO_ADAPTER
from tests.builders import SHAPES, adapter

CONFIG = '[model]\nname_or_path = "né\\n"\n'
FACTS = RunFacts("0.1.0", "florist", 1, {"loss": 0.1 + 0.2, "exact_match": 0.0})


def started(folder: Path) -> RunDirectory:
    return RunDirectory.create(folder / "run", CONFIG, FACTS)


def broadcast(number: int, dtype: torch.dtype = torch.float32) -> AdapterState:
    kept = adapter(3, seed=number, dtype=dtype)
    nothing = LoraFactor(torch.zeros(5, 0, dtype=dtype), torch.zeros(0, 7, dtype=dtype))
    return AdapterState.of({**kept, "layers.9.zero": nothing})


def state(number: int, *, dtype: torch.dtype = torch.float32, skipped: tuple[int, ...] = ()) -> ServerState:
    """What the server holds after a round; the rounds in `skipped` had too few replies."""
    return ServerState(
        round_number=number,
        cumulative=adapter(number + 3, seed=100 + number, dtype=dtype),
        continued=adapter(number + 2, seed=200 + number, dtype=dtype),
        saved_parameters={"score.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(number)).to(dtype)},
        broadcasts={k: broadcast(k, dtype) for k in range(1, number + 1) if k not in skipped},
        holds={"client_0": number, "client_é": max(0, number - 1)},
    )


def record(number: int) -> RoundRecord:
    return RoundRecord(
        round=number,
        aggregated=number != 2,
        metrics={"loss": 1 / (number + 2), "perplexity": 1e300 / 3} if number % 2 else {},
        total_rank=9,
        input_rank=24,
        cumulative_rank=12,
        relative_error=0.1 * number,
        ranks=dict.fromkeys(SHAPES, 3),
        upload_bytes=2**40 + number,
        download_bytes=7,
        broadcast_bytes=3,
        stack_bytes=4,
        clients=(ClientRecord("client_0", 4, 10, 100, 200, 0.1 + 0.2, 1e-9),),
        dropped=(Drop("client_é", "sent NaN\nor inf"),),
        seconds={"total": 0.30000000000000004},
    )


def bits(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    return {
        name: (tensor.dtype, tuple(tensor.shape), tensor.contiguous().view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }


def adapter_bits(held: AdapterState) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    return bits({f"{name} {half}": getattr(factor, half) for name, factor in held.items() for half in "BA"})


def assert_equal(found: ServerState, expected: ServerState) -> None:
    assert found.round_number == expected.round_number
    assert list(found.cumulative) == list(expected.cumulative)
    assert adapter_bits(found.cumulative) == adapter_bits(expected.cumulative)
    assert adapter_bits(found.continued) == adapter_bits(expected.continued)
    assert bits(found.saved_parameters) == bits(expected.saved_parameters)
    assert sorted(found.broadcasts) == sorted(expected.broadcasts)
    for number in expected.broadcasts:
        assert adapter_bits(found.broadcasts[number]) == adapter_bits(expected.broadcasts[number])
    assert found.holds == expected.holds


def test_a_run_starts_with_its_configuration_and_facts(tmp_path: Path) -> None:
    run = started(tmp_path)
    assert run.config_file.read_text(encoding="utf-8") == CONFIG
    assert run.facts == FACTS
    assert (run.path / "rounds.jsonl").read_text() == ""
    assert not run.adapter.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
    assert RunDirectory.open(run.path) == run


def refuse(constant: str) -> float:
    raise AssertionError(constant)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_file_of_a_run_holds_what_is_no_number(tmp_path: Path, value: float) -> None:
    run = RunDirectory.create(tmp_path / "run", "", RunFacts("0", "m", 1, {"loss": value}))
    lost = replace(record(1).clients[0], loss=value)
    run.save(state(1), replace(record(1), metrics={"loss": value}, relative_error=value, clients=(lost,)))
    run.save_tested({"loss": value, "accuracy": 0.5})
    files = [run.path / "run.json", run.path / "test.json", run.path / "state" / "round-0001" / "round.json"]
    for text in (*(file.read_text() for file in files), *(run.path / "rounds.jsonl").read_text().splitlines()):
        json.loads(text, parse_constant=refuse)
        assert "null" in text
    assert math.isnan(run.facts.initial["loss"])
    tested = run.tested
    assert tested is not None
    assert math.isnan(tested["loss"])
    assert tested["accuracy"] == 0.5
    (found,) = run.records()
    assert all(math.isnan(each) for each in (found.metrics["loss"], found.relative_error, found.clients[0].loss))


def test_a_run_that_was_not_tested_has_no_test_metrics(tmp_path: Path) -> None:
    run = started(tmp_path)
    assert run.tested is None
    (run.path / "test.json").write_text("{")
    with pytest.raises(DamagedRunError, match="expected a whole run"):
        run.tested  # noqa: B018  # the access is the test


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    run = started(tmp_path)
    with pytest.raises(OutputExistsError, match="run already exists"):
        RunDirectory.create(run.path, "other", FACTS)
    assert run.config_file.read_text(encoding="utf-8") == CONFIG


def test_a_directory_that_holds_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file", tmp_path / "none"):
        with pytest.raises(MissingInputError, match=r"expected the directory of a run at .*, found no run\.json in it"):
            RunDirectory.open(path)
    with pytest.raises(MissingInputError, match="there is no directory"):
        started(tmp_path / "none")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_saved_state_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    run = started(tmp_path)
    for number in (1, 2, 3):
        run.save(state(number, dtype=dtype, skipped=(2,)), record(number))
        found, records = RunDirectory.open(run.path).load(ServerState.initial())
        assert_equal(found, state(number, dtype=dtype, skipped=tuple({2} & {number, number - 1})))
        assert records == [record(k) for k in range(1, number + 1)]


def test_values_at_the_edge_of_a_format_come_back(tmp_path: Path) -> None:
    B = torch.tensor([[0.0, -0.0, 1e-45, 3.4e38]])
    edge = AdapterState.of({"m": LoraFactor(B.T.expand(4, 3), torch.rand(5, 3).T)})  # views, not contiguous
    run, weight = started(tmp_path), torch.rand(4, 3).T
    run.save(ServerState(1, edge, NO_ADAPTER, {"w": weight}, {1: edge}, {}), record(1))
    found, _ = run.load(ServerState.initial())
    assert adapter_bits(found.cumulative) == adapter_bits(edge)
    assert torch.equal(found.saved_parameters["w"], weight)


def test_a_run_without_heads_or_updates_is_saved(tmp_path: Path) -> None:
    run, empty = started(tmp_path), ServerState(1, NO_ADAPTER, NO_ADAPTER, {}, {}, {})
    run.save(empty, record(1))
    assert_equal(run.load(state(5))[0], empty)


def test_a_run_without_rounds_starts_from_the_initial_state(tmp_path: Path) -> None:
    initial = state(0)
    found, records = started(tmp_path).load(initial)
    assert found is initial
    assert records == []


def test_every_round_is_a_line(tmp_path: Path) -> None:
    run = started(tmp_path)
    for number in (1, 2, 3):
        run.save(state(number), record(number))
        lines = (run.path / "rounds.jsonl").read_text(encoding="utf-8").split("\n")
        assert lines.pop() == ""
        # As JSON, tuples are lists.
        assert [json.loads(line) for line in lines] == [
            json.loads(json.dumps(asdict(record(k)))) for k in range(1, number + 1)
        ]
    assert run.records() == [record(1), record(2), record(3)]


def test_the_lines_are_written_from_the_saved_rounds_and_not_the_other_way(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.save(state(1), record(1))
    run.save(state(2), record(2))
    lines = run.path / "rounds.jsonl"
    whole = lines.read_text()
    # Killed before the lines were replaced; edited by hand; removed.
    for content in (whole.splitlines(keepends=True)[0], "{}\n" * 9, None):
        lines.unlink()
        if content is not None:
            lines.write_text(content)
        assert RunDirectory.open(run.path).load(ServerState.initial())[1] == [record(1), record(2)]
        assert lines.read_text() == whole


def test_a_round_that_was_not_made_current_is_played_again(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.save(state(1), record(1))
    before = (run.path / "state" / "current").read_text()
    first = run.path / "state" / "round-0001"
    shutil.copytree(first, tmp_path / "kept")
    run.save(state(2), record(2))
    # As if killed before the pointer moved: what a save does first is there, what it does after is not.
    (run.path / "state" / "current").write_text(before)
    shutil.rmtree(first)
    shutil.copytree(tmp_path / "kept", first)
    (run.path / "state" / "round-0002" / "round.json").write_text("half a")
    draft = run.path / "state" / ".round-0002.00112233aabbccdd"
    draft.mkdir()
    (draft / "cumulative.safetensors").write_bytes(b"half")

    found, records = RunDirectory.open(run.path).load(ServerState.initial())
    assert_equal(found, state(1))
    assert records == [record(1)]
    run.save(state(2), record(2))
    assert_equal(run.load(ServerState.initial())[0], state(2))


def test_a_round_killed_before_the_first_pointer_leaves_a_run_without_rounds(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.save(state(1), record(1))
    (run.path / "state" / "current").unlink()
    initial = state(0)
    assert run.load(initial) == (initial, [])
    run.save(state(1), record(1))
    assert_equal(run.load(initial)[0], state(1))


def test_a_cumulative_adapter_that_was_not_yet_removed_does_no_harm(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.save(state(1), record(1))
    shutil.copytree(run.path / "state" / "round-0001", tmp_path / "kept")
    run.save(state(2), record(2))
    shutil.rmtree(run.path / "state" / "round-0001")
    shutil.copytree(tmp_path / "kept", run.path / "state" / "round-0001")
    assert_equal(run.load(ServerState.initial())[0], state(2))


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_save_that_is_killed_at_any_point_leaves_the_round_before_or_the_round(tmp_path: Path) -> None:
    first, second = state(1), state(2)
    run = started(tmp_path)
    run.save(first, record(1))

    def save_and_die(run: RunDirectory, last_call: int) -> None:
        left = iter(range(last_call))

        def die(event: str, _: object) -> None:
            if event in {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"} and next(left, None) is None:
                os._exit(9)

        sys.addaudithook(die)
        run.save(second, record(2))

    outcomes = set[int]()
    for last_call in range(1000):
        copy = RunDirectory(shutil.copytree(run.path, tmp_path / f"killed-at-{last_call}"))
        child = multiprocessing.get_context("fork").Process(target=save_and_die, args=(copy, last_call))
        child.start()
        child.join()
        found, records = RunDirectory.open(copy.path).load(ServerState.initial())
        assert_equal(found, second if records == [record(1), record(2)] else first)
        assert (copy.path / "rounds.jsonl").read_text().count("\n") == len(records)
        outcomes.add(len(records))
        if len(records) == 1:
            copy.save(second, record(2))
            assert_equal(copy.load(ServerState.initial())[0], second)
        if child.exitcode == 0:
            break
        assert child.exitcode == 9
    assert last_call > 10
    assert outcomes == {1, 2}


def test_only_the_newest_cumulative_adapter_takes_room(tmp_path: Path) -> None:
    run = started(tmp_path)
    for number in (1, 2, 3):
        run.save(state(number), record(number))
    held = sorted(path.parent.name for path in (run.path / "state").rglob("cumulative.safetensors"))
    assert held == ["round-0003"]
    assert len(list((run.path / "state").rglob("continued.safetensors"))) == 1
    heads = sorted(path.parent.name for path in (run.path / "state").rglob("saved_parameters.safetensors"))
    assert heads == ["round-0003"]
    assert len(list((run.path / "state").rglob("broadcast.safetensors"))) == 3


def test_more_rounds_than_the_names_have_digits(tmp_path: Path) -> None:
    run = started(tmp_path)
    (run.path / "state" / "current").write_text("round-10000\n")
    assert run._current() == 10000
    assert run._folder(10000).name == "round-10000"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda run: (run / "state" / "current").write_text(""),
        lambda run: (run / "state" / "round-0001" / "round.json").unlink(),
        lambda run: os.truncate(run / "state" / "round-0001" / "cumulative.safetensors", 20),
    ],
)
def test_a_damaged_run_is_said_to_be_one(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    directory = started(tmp_path)
    directory.save(state(1), record(1))
    (tmp_path / "run" / "state" / ".round-0002.00112233aabbccdd").mkdir()
    directory.load(ServerState.initial())
    assert not (tmp_path / "run" / "state" / ".round-0002.00112233aabbccdd").exists()
    spoil(tmp_path / "run")
    with pytest.raises(DamagedRunError, match=r"expected a whole run in .*restore the directory"):
        directory.load(ServerState.initial())


def test_facts_that_cannot_be_read_are_damage(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DamagedRunError, match="expected a whole run"):
        RunDirectory.open(tmp_path).facts  # noqa: B018  # the access is the test
