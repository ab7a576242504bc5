import hashlib
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
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from florist.compression.codecs import CODECS
from florist.compression.packed import PackedAdapter
from florist.compression.residual import Residual
from florist.errors import (
    DamagedRunError,
    MissingInputError,
    OtherVersionError,
    OutputExistsError,
    UnwritableOutputError,
)
from florist.factors import AdapterState, LoraFactor
from florist.federation.broadcasts import Broadcasts
from florist.federation.client_residuals import ClientResiduals
from florist.federation.history import RunDirectory
from florist.federation.kept_rounds import KeepRounds
from florist.federation.last_round import LastRound
from florist.federation.records import FinalTest, RoundRecord
from florist.federation.round_lines import RoundLines
from florist.federation.run_facts import RunFacts
from florist.federation.state import ServerState
from florist.files.reading import sha256
from florist.rounds import NO_ADAPTER
from tests.builders import adapter
from tests.stored_runs import CONFIG, FACTS, broadcast, flip, record, state, tree


def started(folder: Path) -> RunDirectory:
    return RunDirectory.create(folder / "run", CONFIG, FACTS)


def bits(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    return {
        name: (tensor.dtype, tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
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
    assert found.broadcasts.forgotten == expected.broadcasts.forgotten
    for number in expected.broadcasts:
        assert adapter_bits(found.broadcasts[number]) == adapter_bits(expected.broadcasts[number])
    assert found.holds == expected.holds


def test_a_run_starts_with_its_configuration_and_facts(tmp_path: Path) -> None:
    run = started(tmp_path)
    assert run.config_file.read_text(encoding="utf-8") == run.begun_file.read_text(encoding="utf-8") == CONFIG
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
    run.save_tested(FinalTest({"loss": value, "accuracy": 0.5}, {"loss": True}))
    files = [run.path / "run.json", run.path / "test.json", run.path / "state" / "current.json"]
    for text in (*(file.read_text() for file in files), *(run.path / "rounds.jsonl").read_text().splitlines()):
        json.loads(text, parse_constant=refuse)
        assert "null" in text
    assert math.isnan(run.facts.initial["loss"])
    tested = run.tested
    assert tested is not None
    assert math.isnan(tested.metrics["loss"])
    assert tested.metrics["accuracy"] == 0.5
    assert tested.lower_is_better == {"loss": True}
    (found,) = run.records()
    assert all(math.isnan(each) for each in (found.metrics["loss"], found.relative_error, found.clients[0].loss))


def test_a_run_that_was_not_tested_has_no_test_metrics(tmp_path: Path) -> None:
    run = started(tmp_path)
    assert run.tested is None
    (run.path / "test.json").write_text('{"metrics": {"loss": 0.1}, "lower_is_better": {"loss": true}}')
    assert run.tested is None  # florist did not write it


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
    with pytest.raises(UnwritableOutputError, match="file is no directory"):
        started(tmp_path / "file")


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
    run.save(ServerState(1, edge, NO_ADAPTER, {"w": weight}, Broadcasts({1: edge}), {}), record(1))
    found, _ = run.load(ServerState.initial())
    assert adapter_bits(found.cumulative) == adapter_bits(edge)
    assert torch.equal(found.saved_parameters["w"], weight)


def test_a_run_without_heads_or_updates_is_saved(tmp_path: Path) -> None:
    run, empty = started(tmp_path), ServerState(1, NO_ADAPTER, NO_ADAPTER, {}, Broadcasts(), {})
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


def test_a_line_that_a_killed_process_left_half_written_is_put_right(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.save(state(1), record(1))
    run.save(state(2), record(2))
    whole = (run.path / "rounds.jsonl").read_text()
    first, second = whole.splitlines(keepends=True)
    for content in (first, first + second[:9], first + second[:-1]):
        (run.path / "rounds.jsonl").write_text(content)
        assert RunDirectory.open(run.path).records() == [record(1), record(2)]
        assert (run.path / "rounds.jsonl").read_text() == content
        assert RunDirectory.open(run.path).load(ServerState.initial())[1] == [record(1), record(2)]
        assert (run.path / "rounds.jsonl").read_text() == whole


def test_the_line_that_a_killed_amendment_was_to_replace_is_put_right_and_no_other_is_taken(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.save(state(1), record(1))
    run.save(state(2), record(2))
    file = run.path / "rounds.jsonl"
    before = file.read_text()
    amended = replace(record(2), metrics={"loss": 0.5})
    for metrics in ({"loss": 0.25}, {"loss": 0.5}):
        former = file.read_text()
        run.amend(state(2), replace(record(2), metrics=metrics))
    after = file.read_text()
    file.write_text(former)  # as where it was killed before it wrote the line
    assert run.records() == [record(1), amended]
    assert run.load(ServerState.initial())[1] == [record(1), amended]
    assert file.read_text() == after
    first, second = after.splitlines(keepends=True)
    for content in (before, after.replace('"loss": 0.5', '"loss": 0.9'), first + second.replace("0.2", "0.3")):
        file.write_text(content)
        with pytest.raises(DamagedRunError, match=r"line of round 2 in rounds\.jsonl is not as .*: remove that line"):
            run.records()
    file.write_text(first)  # what the message says
    assert run.records() == [record(1), amended]


def test_an_amended_record_replaces_the_last(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.save(state(1), record(1))
    run.save(state(2), record(2))
    for metrics in ({"loss": 1e-300, "perplexity": math.pi}, {}):
        amended = replace(record(2), metrics=metrics)
        told = replace(state(2), holds={"client_0": 7})
        run.amend(told, amended)
        assert (run.path / "rounds.jsonl").read_text().count("\n") == 2
        found, records = run.load(ServerState.initial())
        assert_equal(found, told)
        assert records == [record(1), amended]
    run.save(state(3), record(3))
    assert run.records() == [record(1), amended, record(3)]


def test_there_is_nothing_to_amend_before_the_first_round(tmp_path: Path) -> None:
    with pytest.raises(DamagedRunError, match="no round to amend"):
        started(tmp_path).amend(state(1), record(1))


def test_a_round_that_was_not_made_current_is_played_again(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.save(state(1), record(1))
    copy = RunDirectory(shutil.copytree(run.path, tmp_path / "copy"))
    run.save(state(2), record(2))
    # As if killed before the pointer moved: what a save does first is there, what it does after is not.
    shutil.copytree(run.path / "state" / "round-0002", copy.path / "state" / "round-0002")
    (copy.path / "state" / "round-0002" / "cumulative.safetensors").write_text("half a")
    draft = copy.path / "state" / ".round-0002.00112233aabbccdd"
    draft.mkdir()
    (draft / "cumulative.safetensors").write_bytes(b"half")

    found, records = RunDirectory.open(copy.path).load(ServerState.initial())
    assert_equal(found, state(1))
    assert records == [record(1)]
    assert [entry.name for entry in sorted((copy.path / "state").iterdir())] == ["current.json", "round-0001"]
    copy.save(state(2), record(2))
    assert_equal(copy.load(ServerState.initial())[0], state(2))


def test_a_round_killed_before_the_first_pointer_leaves_a_run_without_rounds(tmp_path: Path) -> None:
    run = started(tmp_path)
    other = RunDirectory(shutil.copytree(run.path, tmp_path / "other"))
    other.save(state(1), record(1))
    shutil.copytree(other.path / "state" / "round-0001", run.path / "state" / "round-0001")
    initial = state(0)
    assert run.load(initial) == (initial, [])
    run.save(state(1), record(1))
    assert_equal(run.load(initial)[0], state(1))


def test_what_was_not_yet_removed_does_no_harm(tmp_path: Path) -> None:
    run = started(tmp_path)
    for number in (1, 2, 3):
        run.save(state(number), record(number))
    shutil.copytree(run.path / "state", tmp_path / "kept")
    run.save(state(4), record(4))
    shutil.rmtree(run.path / "state" / "round-0003")
    for name in ("round-0001", "round-0003"):
        shutil.copytree(tmp_path / "kept" / name, run.path / "state" / name)
    assert_equal(run.load(ServerState.initial())[0], state(4))
    folders = [entry.name for entry in sorted((run.path / "state").glob("round-*"))]
    assert folders == ["round-0002", "round-0003", "round-0004"]
    assert [file.name for file in (run.path / "state" / "round-0003").iterdir()] == ["broadcast.safetensors"]


def test_the_result_of_a_run_that_goes_on_is_set_aside(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.result.set_aside(3)
    run.adapter.mkdir()
    (run.adapter / "README.md").write_text("three rounds")
    run.save_tested(FinalTest({"loss": 1.0}, {"loss": True}))
    run.result.set_aside(3)
    assert not run.adapter.exists()
    assert run.tested is None
    assert (run.path / "adapter-round-0003" / "README.md").read_text() == "three rounds"
    tested = json.loads((run.path / "test-round-0003.json").read_text())
    assert tested == {"metrics": {"loss": 1.0}, "lower_is_better": {"loss": True}}


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize("what", ["amend", pytest.param("save", marks=pytest.mark.slow)])
def test_a_write_that_is_killed_at_any_point_leaves_what_was_before_or_what_was_written(
    what: str, tmp_path: Path
) -> None:
    before, after = (state(4), state(5)) if what == "save" else (state(4), replace(state(4), holds={"client_0": 1}))
    last = record(5) if what == "save" else replace(record(4), metrics={"loss": 1.0})
    run = started(tmp_path)
    for number in (1, 2, 3, 4):
        run.save(state(number), record(number))
    earlier = [record(number) for number in (1, 2, 3)]
    written = [*earlier, record(4), last] if what == "save" else [*earlier, last]

    def write_and_die(run: RunDirectory, last_call: int) -> None:
        left = iter(range(last_call))

        def die(event: str, _: object) -> None:
            if event in {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"} and next(left, None) is None:
                os._exit(9)

        sys.addaudithook(die)
        (run.save if what == "save" else run.amend)(after, last)

    outcomes = set[bool]()
    for last_call in range(1000):
        copy = RunDirectory(shutil.copytree(run.path, tmp_path / f"killed-at-{last_call}"))
        child = multiprocessing.get_context("fork").Process(target=write_and_die, args=(copy, last_call))
        child.start()
        child.join()
        seen = RunDirectory.open(copy.path).records()
        found, records = RunDirectory.open(copy.path).load(ServerState.initial())
        assert records == seen
        assert records in (written, [*earlier, record(4)])
        assert_equal(found, after if records == written else before)
        assert (copy.path / "rounds.jsonl").read_text().count("\n") == len(records)
        outcomes.add(records == written)
        if records != written:
            (copy.save if what == "save" else copy.amend)(after, last)
            assert_equal(copy.load(ServerState.initial())[0], after)
        if child.exitcode == 0:
            break
        assert child.exitcode == 9
    assert last_call > (10 if what == "save" else 2)
    assert outcomes == {True, False}
    # However it was killed, nothing is left that a run that was not killed does not have.
    run.save(after, last) if what == "save" else run.amend(after, last)
    files = {file.relative_to(run.path): file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    for killed in tmp_path.glob("killed-at-*"):
        assert {file.relative_to(killed): file.read_bytes() for file in killed.rglob("*") if file.is_file()} == files


def test_only_what_is_needed_to_resume_takes_room(tmp_path: Path) -> None:
    run = started(tmp_path)
    for number in range(1, 8):
        run.save(state(number), record(number))
    found = {f"{file.parent.name}/{file.name}" for file in (run.path / "state").rglob("*.safetensors")}
    assert found == {
        *(f"round-000{number}/broadcast.safetensors" for number in (5, 6, 7)),
        *(f"round-0007/{name}.safetensors" for name in ("cumulative", "continued", "saved_parameters")),
    }
    assert {file.name for file in (run.path / "state").iterdir()} == {
        "current.json", "round-0005", "round-0006", "round-0007"
    }  # fmt: skip


def test_a_save_reads_no_earlier_round(tmp_path: Path) -> None:
    run = started(tmp_path)
    for number in range(1, 5):
        run.save(state(number), record(number))
    lines = (run.path / "rounds.jsonl").read_bytes()
    spoilt = b"x" * (len(lines) - 1) + b"\n"
    (run.path / "rounds.jsonl").write_bytes(spoilt)
    run.save(state(5), record(5))
    assert (run.path / "rounds.jsonl").read_bytes()[: len(lines)] == spoilt


def test_more_rounds_than_the_names_have_digits(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.save(replace(state(3), round_number=10000, broadcasts=Broadcasts({10000: broadcast(3)}, 9999)), record(3))
    assert [entry.name for entry in (run.path / "state").glob("round-*")] == ["round-10000"]


def sealed(run: Path, **changes: object) -> None:
    """Change current.json as somebody would who knows its hash."""
    file = run / "state" / "current.json"
    last = json.loads(file.read_text())["last"] | changes
    file.write_text(json.dumps({"sha256": hashlib.sha256(json.dumps(last).encode()).hexdigest(), "last": last}))


def replaced(file: Path, make: Callable[[Path], object]) -> None:
    file.unlink()
    make(file)


NOT_FILES: Mapping[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "directory": Path.mkdir,
    "device": lambda file: file.symlink_to("/dev/zero"),
    "dangling": lambda file: file.symlink_to("nowhere"),
    "circular": lambda file: file.symlink_to(file.name),
}
SPOILT: Mapping[str, Callable[[Path], object]] = {
    **{
        f"current.json {content[:20]}": lambda run, content=content: (run / "state" / "current.json").write_text(
            content
        )
        for content in (
            "",
            "{}",
            "[]",
            "null",
            "{",
            '{"sha256": "", "last": {}}',
            "[" * 50_000,
            '{"last": 1' + "0" * 5_000,
        )
    },
    **{
        f"{name} as {kind}": lambda run, name=name, make=make: replaced(run / name, make)
        for name in ("state/current.json", "rounds.jsonl", "state/round-0002/cumulative.safetensors", "run.json")
        for kind, make in NOT_FILES.items()
    },
    **{
        f"round {number}": lambda run, number=number: sealed(run, round=number)
        for number in (-1, 0, 1, 3, 10**9, 10**30, "2x", None)
    },
    "bits of current.json": lambda run: flip(run / "state" / "current.json", 300),
    "who holds what": lambda run: (run / "state" / "current.json").write_text(
        (run / "state" / "current.json").read_text().replace('"client_0": 2', '"client_0": 1')
    ),
    "no current.json": lambda run: (run / "state" / "current.json").unlink(),
    "no current.json and no lines": lambda run: [
        (run / "state" / "current.json").unlink(),
        (run / "rounds.jsonl").write_text(""),
    ],
    "no state": lambda run: shutil.rmtree(run / "state"),
    "no lines": lambda run: (run / "rounds.jsonl").unlink(),
    "empty lines": lambda run: (run / "rounds.jsonl").write_text(""),
    "shorter lines": lambda run: (run / "rounds.jsonl").write_text((run / "rounds.jsonl").read_text()[20:]),
    "another line": lambda run: (run / "rounds.jsonl").write_text((run / "rounds.jsonl").read_text() + "{}\n"),
    "more of a line": lambda run: (run / "rounds.jsonl").write_text((run / "rounds.jsonl").read_text() + "{"),
    "the last line twice": lambda run: (run / "rounds.jsonl").write_text(
        (run / "rounds.jsonl").read_text() + (run / "rounds.jsonl").read_text().splitlines(keepends=True)[-1]
    ),
    "a middle that was edited": lambda run: (run / "rounds.jsonl").write_text(
        (run / "rounds.jsonl").read_text().replace('"upload_bytes": 100', '"upload_bytes": 101', 1)
    ),
    "a last line that was edited": lambda run: (run / "rounds.jsonl").write_text(
        (run / "rounds.jsonl").read_text().replace('"relative_error": 0.2', '"relative_error": 0.1')
    ),
    "lines of another run": lambda run: (run / "rounds.jsonl").write_text(
        (run / "rounds.jsonl").read_text().replace('"download_bytes": 7', '"download_bytes": 8')
    ),
    "no cumulative": lambda run: (run / "state" / "round-0002" / "cumulative.safetensors").unlink(),
    "no broadcast": lambda run: (run / "state" / "round-0001" / "broadcast.safetensors").unlink(),
    "short": lambda run: os.truncate(run / "state" / "round-0002" / "cumulative.safetensors", 20),
    "a bit": lambda run: flip(run / "state" / "round-0002" / "cumulative.safetensors"),
    "a bit of an earlier round": lambda run: flip(run / "state" / "round-0001" / "broadcast.safetensors"),
    "rounds swapped": lambda run: shutil.copy(
        run / "state" / "round-0001" / "broadcast.safetensors", run / "state" / "round-0002" / "broadcast.safetensors"
    ),
    "begun.toml edited": lambda run: (run / "begun.toml").write_text("[federation]\nrounds = 9\n"),
    "run.json edited": lambda run: (run / "run.json").write_text(
        (run / "run.json").read_text().replace('"threads": 1', '"threads": 2')
    ),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_a_damaged_run_is_said_to_be_one_and_left_as_it_is(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    directory = started(tmp_path)
    directory.save(state(1), record(1))
    directory.save(state(2), record(2))
    spoil(tmp_path / "run")
    (tmp_path / "run" / ".round-0003.00112233aabbccdd").mkdir()  # what a killed process left stays, too
    before = tree(tmp_path)
    for read in (directory.require_whole, lambda: directory.load(ServerState.initial())):
        with pytest.raises(DamagedRunError, match=r"expected a whole run in .*restore the directory") as refusal:
            read()
        assert len(str(refusal.value)) < 900
        assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("keep", "offer"),
    [
        (KeepRounds.LAST, "no round of it can be exported; nothing in it was changed"),
        (KeepRounds.SENT, "round 1 is whole: florist export "),
    ],
)
def test_a_damaged_round_is_named_and_the_last_whole_one_offered(tmp_path: Path, keep: KeepRounds, offer: str) -> None:
    run = RunDirectory.create(tmp_path / "run", CONFIG, replace(FACTS, keep_rounds=keep))
    for number in (1, 2):
        run.save(compressed(number), replace(record(number), aggregated=True))
    flip(run.path / "state" / "round-0002" / "cumulative.safetensors")
    flip(run.path / "state" / "round-0002" / "continued.safetensors")
    with pytest.raises(DamagedRunError) as refusal:
        run.load(ServerState.initial())
    assert "round-0002/continued.safetensors is not as it was written: its SHA-256 is " in str(refusal.value)
    assert offer in str(refusal.value)
    if keep is KeepRounds.SENT:
        assert run.state_after(1, with_held_back=False).round_number == 1


def test_the_best_round_is_offered_where_it_is_kept(tmp_path: Path) -> None:
    run = started(tmp_path)
    for number in (1, 2, 3):
        run.save(compressed(number), replace(record(number), aggregated=True), best=1)
    flip(run.path / "state" / "round-0003" / "cumulative.safetensors")
    with pytest.raises(DamagedRunError, match=r"round 1 is whole: florist export .*run --round 1; nothing in it"):
        run.load(ServerState.initial())
    # The last round is whole, and the best one is not: a resumption would need it at its end.
    run = RunDirectory.create(tmp_path / "other", CONFIG, FACTS)
    for number in (1, 2, 3):
        run.save(compressed(number), replace(record(number), aggregated=True), best=1)
    flip(run.path / "state" / "round-0001" / "cumulative.safetensors")
    with pytest.raises(DamagedRunError, match=r"round-0001/cumulative\.safetensors is not as .*; round 3 is whole"):
        run.load(ServerState.initial())


def test_the_result_of_a_run_is_known_by_its_hashes(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.save(state(1), record(1))
    assert (run.result.has_test, run.result.has_adapter, run.result.damage()) == (False, False, None)
    run.save_tested(FinalTest({"loss": 1.0}, {"loss": True}))
    run.adapter.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json", "florist.json", "README.md"):
        (run.adapter / name).write_text(name)
    assert (run.result.has_test, run.result.has_adapter, run.result.damage()) == (True, False, None)
    run.result.record_adapter()
    assert (run.result.has_test, run.result.has_adapter, run.result.damage()) == (True, True, None)
    (run.adapter / "README.md").write_text("edited")
    assert run.result.has_adapter
    (run.adapter / "adapter_config.json").write_text("")
    assert (run.result.has_test, run.result.has_adapter) == (True, False)
    assert str(run.result.damage()).startswith("adapter/adapter_config.json is not as it was written")
    run.save_tested(FinalTest({"loss": 2.0}, {"loss": True}))
    assert not run.result.has_adapter  # the hashes of the one are not those of the other
    shutil.rmtree(run.adapter)
    assert str(run.result.damage()).startswith("adapter/adapter_model.safetensors is missing")
    run.result.set_aside(1)
    assert run.result.damage() is None
    run.save(state(2), record(2))
    assert run.load(ServerState.initial())[1] == [record(1), record(2)]


def test_hashes_are_of_what_is_kept_and_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def counted(file: Path) -> str:
        hashed.append(file.name)
        return sha256(file)

    run = started(tmp_path)
    monkeypatch.setattr("florist.federation.state_folder.sha256", counted)
    for number in range(1, 6):
        run.save(state(number), record(number))
        assert sorted(hashed) == sorted(
            f"{name}.safetensors" for name in ("broadcast", "continued", "cumulative", "saved_parameters")
        )
        hashed.clear()
    files = json.loads((run.path / "state" / "current.json").read_text())["last"]["files"]
    on_disk = (run.path / "state").rglob("*.safetensors")
    assert files == {f"{file.parent.name}/{file.name}": sha256(file) for file in on_disk}


def test_a_run_that_is_read_while_it_is_played_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, reader = started(tmp_path), RunDirectory(tmp_path / "run")
    run.save(state(1), record(1))
    read = RoundLines.records

    def overtaken(self: RoundLines, last: LastRound) -> list[RoundRecord]:
        if last.round == 1:
            monkeypatch.setattr(RoundLines, "records", read)
            run.save(state(2), record(2))  # between the reader's look at current.json and at rounds.jsonl
            run.save(state(3), record(3))
        return read(self, last)

    monkeypatch.setattr(RoundLines, "records", overtaken)
    assert reader.records() == [record(1), record(2), record(3)]


def test_facts_that_cannot_be_read_are_damage(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DamagedRunError, match="expected a whole run"):
        RunDirectory.open(tmp_path).facts  # noqa: B018  # the access is the test


@pytest.mark.parametrize(
    ("changes", "telling"),
    [
        ({"format": None}, r"got one that an earlier florist 0\.1\.0 wrote, before runs had a format number; begin"),
        ({"format": 2}, r"got format 2, which an earlier florist 0\.1\.0 wrote; begin .*or commit that began this one"),
        ({"format": 3}, r"got format 3, which an earlier florist 0\.1\.0 wrote; begin .*or commit that began this one"),
        ({"format": 5, "florist": "9.9"}, r"got format 5 of florist 9\.9; install that version or a later one"),
    ],
)
def test_a_run_of_another_format_is_refused(changes: dict[str, object], telling: str, tmp_path: Path) -> None:
    path = started(tmp_path).path
    document = {**json.loads((path / "run.json").read_text()), **changes}
    (path / "run.json").write_text(json.dumps({name: value for name, value in document.items() if value is not None}))
    with pytest.raises(OtherVersionError, match=rf"run: expected a run of format 4, {telling}"):
        RunDirectory.open(path)


def test_the_adapter_of_a_run_of_an_earlier_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "run.json").write_text('{"florist": "0.1.0"}')
    with pytest.raises(OtherVersionError, match=rf"its adapter in {tmp_path / 'adapter'} can still be used; begin"):
        RunDirectory.open(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "new"}', "null"])
def test_facts_that_lack_something_are_damage(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises((DamagedRunError, OtherVersionError)):
        RunDirectory.open(tmp_path).facts  # noqa: B018  # the access is the test


# --- what a codec packed, and what is held back


def residual(seed: int, *, head: bool = True) -> Residual:
    head_of = {"score.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))}
    return Residual(adapter(5, seed, dtype=torch.float32), head_of if head else {})


def compressed(number: int, codec: str = "int4") -> ServerState:
    """What the server of a federation with feedback holds after a round: two broadcasts as they were sent."""
    packed = {k: PackedAdapter.of(broadcast(k), CODECS[codec]) for k in range(max(1, number - 1), number + 1)}
    continued = PackedAdapter.of(adapter(4, number, dtype=torch.float32), CODECS[codec])
    return replace(
        state(number),
        continued=continued.unpacked(),
        broadcasts=Broadcasts({k: each.unpacked() for k, each in packed.items()}, max(0, number - 2), packed),
        packed_continued=continued,
        owed=residual(300 + number),
    )


def residual_bits(held: Residual) -> object:
    return adapter_bits(held.adapter), bits(held.saved_parameters)


def packed_bits(packed: PackedAdapter | None) -> object:
    return None if packed is None else (dict(packed.description()), bits(packed.tensors()))


def owed_by(number: int, before: ClientResiduals) -> ClientResiduals:
    """Client 0 takes part in every round, client é in the first, client 2 in the second and owes nothing after it."""
    names = {1: ["client_0", "client_é"], 2: ["client_0", "../2"]}.get(number, ["client_0"])
    return before.followed_by(
        number, {name: residual(number * 10 + k) if name != "../2" else Residual() for k, name in enumerate(names)}
    )


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_packed_and_held_back_comes_back_bit_for_bit(tmp_path: Path, codec: str) -> None:
    run, owed = started(tmp_path), ClientResiduals()
    for number in (1, 2, 3):
        expected, owed = compressed(number, codec), owed_by(number, owed)
        run.save(expected, record(number), owed)
        found, _ = RunDirectory.open(run.path).load(ServerState.initial())
        assert_equal(found, expected)
        assert packed_bits(found.packed_continued) == packed_bits(expected.packed_continued)
        assert residual_bits(found.owed) == residual_bits(expected.owed)
        assert found.broadcasts.packed.keys() == expected.broadcasts.packed.keys()
        for k in expected.broadcasts:
            assert packed_bits(found.broadcasts.packed[k]) == packed_bits(expected.broadcasts.packed[k])
        back = RunDirectory.open(run.path).client_residuals()
        assert list(back) == ["client_0", "client_é"]
        assert back.rounds == owed.rounds == {"client_0": number, "client_é": 1}
        for name in back:
            assert residual_bits(back[name]) == residual_bits(owed[name])
        run.amend(found, replace(record(number), metrics={}))
        assert RunDirectory.open(run.path).client_residuals().rounds == owed.rounds


def test_only_what_is_still_held_back_takes_room(tmp_path: Path) -> None:
    run, owed = started(tmp_path), ClientResiduals()
    for number in range(1, 6):
        owed = owed_by(number, owed)
        run.save(compressed(number), record(number), owed)
    found = {
        f"{file.parent.name}/{file.name.partition('-by-')[0]}" for file in (run.path / "state").rglob("*.safetensors")
    }
    last = ("broadcast", "continued", "cumulative", "owed", "owed_parameters", "packed_continued", "saved_parameters")
    assert found == {
        *(f"round-000{number}/{name}" for number in (1, 5) for name in ("owed", "owed-parameters")),
        "round-0004/broadcast.safetensors",
        *(f"round-0005/{name}.safetensors" for name in last),
    }
    # Nothing is owed any more: all of it goes.
    run.save(state(6), record(6), owed.followed_by(6, dict.fromkeys(owed, Residual())))
    assert not list((run.path / "state").rglob("owed*"))
    assert not run.client_residuals()
    assert not run.load(ServerState.initial())[0].owed


def test_residuals_of_a_round_that_was_not_made_current_are_not_those_of_the_run(tmp_path: Path) -> None:
    run, first = started(tmp_path), owed_by(1, ClientResiduals())
    run.save(compressed(1), record(1), first)
    copy = RunDirectory(shutil.copytree(run.path, tmp_path / "copy"))
    run.save(compressed(2), record(2), owed_by(2, first))
    shutil.copytree(run.path / "state" / "round-0002", copy.path / "state" / "round-0002")
    copy.load(ServerState.initial())
    back = copy.client_residuals()
    assert {name: residual_bits(back[name]) for name in back} == {name: residual_bits(first[name]) for name in first}


def spoil_metadata(file: Path) -> None:
    save_file(load_file(file), file, metadata={"packed": '{"codec": "int5", "factors": "{}"}'})


def spoil_codes(file: Path) -> None:
    with safe_open(file, "pt") as opened:
        description = opened.metadata()
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith(".codes"))
    save_file({**tensors, name: tensors[name][:-1].clone()}, file, metadata=description)


@pytest.mark.parametrize(
    ("pattern", "spoil"),
    [
        ("owed.safetensors", Path.unlink),
        ("owed_parameters.safetensors", Path.unlink),
        ("owed.safetensors", lambda file: os.truncate(file, 30)),
        ("packed_continued.safetensors", spoil_codes),
        ("broadcast.safetensors", spoil_metadata),
        ("broadcast.safetensors", spoil_codes),
        ("owed-by-*", Path.unlink),
        ("owed-parameters-by-*", lambda file: os.truncate(file, 3)),
        ("owed-by-*", lambda file: save_file({"layer.B": torch.ones(2, 2)}, file)),
    ],
)
def test_a_damaged_file_of_what_is_packed_or_held_back_is_said_to_be_one(
    tmp_path: Path, pattern: str, spoil: Callable[[Path], object]
) -> None:
    run = started(tmp_path)
    run.save(compressed(1), record(1), owed_by(1, ClientResiduals()))
    spoil(min((run.path / "state" / "round-0001").glob(pattern)))
    with pytest.raises(DamagedRunError, match=r"expected a whole run in .*restore the directory"):
        read_all(run)


def read_all(run: RunDirectory) -> None:
    run.load(ServerState.initial())
    run.client_residuals()
