"""``florist watch``: runs are written by the run directory itself, and followed by the command."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from florist.cli.watch_table import Row, curve, rows_table, size
from florist.errors import DamagedRunError
from florist.federation.following import Records, RecordTail, read_status
from florist.federation.history import RunDirectory
from florist.federation.records import FinalTest, RoundRecord
from florist.files import strict_json
from florist.files.locking import sole_process
from tests.stored_runs import FACTS, record, state

from .running import ENVIRONMENT, Run, refused

CONFIG = "[federation]\nrounds = 3\n"
WATCH = [sys.executable, "-m", "florist.cli", "watch"]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", CONFIG, FACTS)


def measured(number: int) -> RoundRecord:
    return replace(record(number), metrics={"loss": 3.0 / number}, aggregated=True, held_back=0.5, dropped=())


def played(run: RunDirectory, rounds: int) -> RunDirectory:
    for number in range(1, rounds + 1):
        run.save(state(number), measured(number))
    return run


# --- reading what is new


def rounds_of(records: Iterator[RoundRecord]) -> list[int]:
    return [each.round for each in records]


def test_only_what_is_new_is_read(run: RunDirectory) -> None:
    tail = RecordTail(run.path)
    assert rounds_of(tail.new()) == []
    played(run, 2)
    found = list(tail.new())
    assert found == [measured(1), measured(2)]
    assert rounds_of(tail.new()) == []
    file = run.path / "rounds.jsonl"
    whole = file.read_bytes()
    file.write_bytes(b"x" * (whole.index(b"\n") + 1) + whole[whole.index(b"\n") + 1 :])  # nobody reads that again
    run.save(state(3), measured(3))
    assert rounds_of(tail.new()) == [3]


def test_half_a_line_waits_for_its_end(run: RunDirectory) -> None:
    played(run, 2)
    file, tail = run.path / "rounds.jsonl", RecordTail(run.path)
    whole = file.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        fresh = RecordTail(run.path)
        assert rounds_of(fresh.new()) == [1][: whole[:cut].count(b"\n")]
    list(tail.new())
    file.write_bytes(whole)
    assert rounds_of(tail.new()) == [2]


def test_a_round_that_is_completed_takes_its_own_place(run: RunDirectory) -> None:
    tail = RecordTail(run.path)
    played(run, 1)
    assert list(tail.new()) == [measured(1)]
    complete = replace(measured(1), metrics={"loss": 0.25})
    run.amend(state(1), complete)
    run.save(state(2), measured(2))
    assert list(tail.new()) == [complete, measured(2)]
    file = run.path / "rounds.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.index(b"\n") + 1])  # as between the cut and the new line
    assert rounds_of(tail.new()) == []
    file.write_bytes(whole)
    assert rounds_of(tail.new()) == []


def test_a_run_that_lost_rounds_or_is_another_is_read_from_its_start(run: RunDirectory, tmp_path: Path) -> None:
    tail = RecordTail(run.path)
    played(run, 3)
    assert rounds_of(tail.new()) == [1, 2, 3]
    copy = RunDirectory.create(tmp_path / "copy", CONFIG, FACTS)
    played(copy, 2)
    shutil.rmtree(run.path)
    copy.path.rename(run.path)
    assert rounds_of(tail.new()) == [1, 2]
    (run.path / "rounds.jsonl").write_text("")
    assert rounds_of(tail.new()) == []
    played_again = json.dumps(strict_json.decode(strict_json.encode(asdict(measured(1)))))
    (run.path / "rounds.jsonl").write_text(played_again + "\n")
    assert rounds_of(tail.new()) == [1]


def test_a_line_that_is_no_record_is_told(run: RunDirectory) -> None:
    (run.path / "rounds.jsonl").write_text('{"round": 1}\n')
    with pytest.raises(DamagedRunError, match=r"a line of rounds\.jsonl is no record of a round"):
        list(RecordTail(run.path).new())


def test_of_ten_thousand_rounds_only_the_new_one_is_read(run: RunDirectory) -> None:
    many = replace(
        measured(1),
        ranks={f"model.layers.{n}.q_proj": 8 for n in range(20)},
        clients=tuple(replace(measured(1).clients[0], client_id=f"client_{n}") for n in range(8)),
    )
    line = strict_json.encode(asdict(many)) + "\n"
    head = '{"round": 1, '
    assert line.startswith(head)
    with (run.path / "rounds.jsonl").open("w") as lines:
        lines.writelines(f'{{"round": {number}, {line[len(head) :]}' for number in range(1, 10_001))
    tail, began = RecordTail(run.path), time.perf_counter()
    assert sum(1 for _ in tail.new()) == 10_000
    whole = time.perf_counter() - began
    with (run.path / "rounds.jsonl").open("a") as lines:
        lines.write(f'{{"round": 10001, {line[len(head) :]}')
    began = time.perf_counter()
    assert rounds_of(tail.new()) == [10_001]
    assert time.perf_counter() - began < whole / 20


# --- the command


def test_a_run_that_is_over_is_shown_and_left(run: RunDirectory, florist: Run) -> None:
    played(run, 3)
    run.save_tested(FinalTest({"loss": 0.875}, {"loss": True}))
    run.adapter.mkdir()
    before = sorted(path.name for path in run.path.rglob("*"))
    result = florist("watch", run.path)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "round 0: loss 0.300, exact_match 0.000"
    assert lines[1].startswith("round 1: loss 3.000, total rank 9, 1.1 TB up, 0.0 KB down, 10% held back, 0.3 s, 1 cl")
    assert [line[:8] for line in lines[1:4]] == ["round 1:", "round 2:", "round 3:"]
    assert lines[-2:] == [
        "the final adapter on the test examples: loss 0.875",
        f"the run is over; the final adapter is in {run.adapter}",
    ]
    assert sorted(path.name for path in run.path.rglob("*")) == before  # nothing was written


def test_a_run_without_an_adapter_is_over_after_its_last_round(run: RunDirectory, florist: Run) -> None:
    played(run, 3)
    assert florist("watch", run.path).stdout.endswith("the run is over; no adapter\n")


def test_once_shows_how_far_a_run_is(run: RunDirectory, florist: Run) -> None:
    played(run, 2)
    result = florist("watch", run.path, "--once", columns=80)
    assert result.returncode == 0
    table = [line.split() for line in result.stdout.splitlines()]
    assert ["1", "3.000", "9", "1.1", "TB", "0.0", "KB", "10%", "0.3", "1"] in table
    assert "round 2 of 3: all clients together sent" in result.stdout
    assert "no process is at work in it" in result.stdout
    assert "…" not in result.stdout
    with sole_process(run.path):
        assert "no process" not in florist("watch", run.path, "--once").stdout


def test_json_is_a_record_a_line(run: RunDirectory, florist: Run) -> None:
    run.save(state(1), replace(measured(1), metrics={}))
    run.save(state(2), measured(2))
    recorded = [json.loads(line) for line in (run.path / "rounds.jsonl").read_text().splitlines()]
    result = florist("watch", run.path, "--once", "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == recorded


def test_the_last_round_is_shown_as_the_pointer_has_it(run: RunDirectory, florist: Run) -> None:
    played(run, 2)
    file = run.path / "rounds.jsonl"
    first, former = file.read_text().splitlines(keepends=True)
    run.amend(state(2), replace(measured(2), metrics={"loss": 0.125}))
    for content in (first + former, first, first + former[:20]):  # what a kill leaves
        file.write_text(content)
        result = florist("watch", run.path, "--once", "--json")
        found = [json.loads(line) for line in result.stdout.splitlines()]
        assert [(each["round"], each["metrics"]["loss"]) for each in found] == [(1, 3.0), (2, 0.125)]
    file.write_text(first + former.replace('"loss": 1.5', '"loss": 0.9'))
    assert "the line of round 2 in rounds.jsonl is not as it was written" in refused(florist("watch", run.path))
    followed = Records(run.path)
    assert [each.metrics["loss"] for each in followed.new(None)] == [3.0, 0.125]
    status = read_status(run.path)
    assert status is not None
    assert list(followed.new(status.record)) == []


def test_what_is_no_run_is_refused(run: RunDirectory, florist: Run, tmp_path: Path) -> None:
    assert "found nothing; without --once it is awaited" in refused(florist("watch", tmp_path / "later", "--once"))
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "comparison.json").touch()
    assert "follow one of its runs" in refused(florist("watch", tmp_path / "comparison"))
    (run.path / "run.json").write_text("{")
    assert "expected a whole run in" in refused(florist("watch", run.path))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("state/current.json", '{\n "sha256": "a', "state/current.json is not JSON: Unterminated string"),
        ("state/current.json", "", "state/current.json is not JSON: Expecting value"),
        ("state/current.json", "[]", "state/current.json is not as florist wrote it"),
        ("state/current.json", "[" * 50_000, "state/current.json is not JSON: lists or objects are nested too deep"),
        ("run.json", "", "run.json is not JSON: Expecting value"),
        ("run.json", "[]", "run.json is not as"),
    ],
    ids=["cut", "emptied", "another", "deep", "facts emptied", "facts another"],
)
def test_each_reader_of_a_damaged_run_names_the_file_in_the_same_words(
    run: RunDirectory, florist: Run, name: str, content: str, reason: str
) -> None:
    played(run, 1)
    (run.path / name).write_text(content)
    for words in (["watch"], ["report"], ["simulate", "--resume"]):
        line = refused(florist(*words, run.path))
        assert f"expected a whole run in {run.path}, and reading it failed ({reason}" in line, words
        assert "nothing in it was changed: restore the directory from a copy, or start the run anew" in line, words
        assert "pydantic" not in line


def test_no_name_in_a_run_writes_control_characters_to_the_terminal(tmp_path: Path, florist: Run) -> None:
    forged = "x\x1b[31m\nflorist: ok"
    facts = replace(FACTS, method=forged, initial={forged: 1.0})
    run = RunDirectory.create(tmp_path / "run", CONFIG.replace("3", "1"), facts)
    run.save(state(1), replace(measured(1), metrics={forged: 0.5}))
    run.adapter.mkdir()
    for words in (["--once"], []):
        out = florist("watch", run.path, *words).stdout
        assert all(line.isprintable() for line in out.splitlines())
        assert "x\\x1b[31m\\nflorist: ok" in out
        assert not any(line.startswith("florist: ok") for line in out.splitlines())


def test_it_needs_no_torch(run: RunDirectory) -> None:
    played(run, 3)
    script = f"import sys; sys.argv = ['florist', 'watch', {str(run.path)!r}]\nfrom florist.cli import main\n"
    script += "try:\n    main()\nexcept SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("None False\n")


def test_it_waits_for_a_run_and_prints_each_round_once(tmp_path: Path) -> None:
    """Piped: rounds come one by one, one of them is completed later, and the end of the run is the end of it."""
    watching = subprocess.Popen(
        [*WATCH, tmp_path / "run", "--interval", "0.05"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with watching:
        assert watching.stderr is not None
        assert watching.stdout is not None
        assert watching.stderr.readline() == f"note: waiting for a run in {tmp_path / 'run'}\n"
        run = RunDirectory.create(tmp_path / "run", CONFIG, FACTS)
        with sole_process(run.path):
            run.save(state(1), measured(1))
            lines = [watching.stdout.readline(), watching.stdout.readline()]  # comes while the run goes on
            run.save(state(2), replace(measured(2), metrics={}))
            time.sleep(0.3)
            run.amend(state(2), measured(2))
            lines.append(watching.stdout.readline())
            run.save(state(3), replace(measured(3), metrics={}))
        lines += watching.stdout.readlines()
    assert watching.returncode == 0
    assert [line.split(",")[0].strip() for line in lines[:4]] == [
        "round 0: loss 0.300",
        "round 1: loss 3.000",
        "round 2: loss 1.500",
        "round 3: total rank 9",
    ]
    assert [line[:5] for line in lines].count("round") == 5  # the last one is of the totals


def terminal(
    command: list[object], then: Callable[[subprocess.Popen[bytes], Callable[[], str]], None]
) -> tuple[int, str]:
    """Run a command in a terminal; return its status and all that it drew."""
    leader, follower = pty.openpty()
    drawn: list[bytes] = []

    def read() -> None:
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:
                return
            if not part:
                return
            drawn.append(part)

    environment = ENVIRONMENT | {"TERM": "xterm", "LINES": "30", "COLUMNS": "80"}
    process = subprocess.Popen(list(map(str, command)), env=environment, stdout=follower, stderr=follower)
    os.close(follower)
    reader = threading.Thread(target=read)
    reader.start()
    then(process, lambda: b"".join(drawn).decode())
    status = process.wait(60)
    reader.join(60)
    os.close(leader)
    return status, b"".join(drawn).decode()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_terminal_is_drawn_on_and_ctrl_c_is_quiet(run: RunDirectory) -> None:
    played(run, 2)

    def then(process: subprocess.Popen[bytes], drawn: Callable[[], str]) -> None:
        until(lambda: "round 2 of 3" in drawn())
        run.save(state(3), measured(3))
        run.adapter.mkdir()

    status, drawn = terminal([*WATCH, run.path, "--interval", "0.05"], then)
    assert status == 0
    assert "█" in drawn
    assert "the run is over" in drawn

    shutil.rmtree(run.adapter)
    run.save_config("[federation]\nrounds = 9\n")

    def interrupt(process: subprocess.Popen[bytes], drawn: Callable[[], str]) -> None:
        until(lambda: "round 3 of 9" in drawn())
        process.send_signal(signal.SIGINT)

    status, drawn = terminal([*WATCH, run.path, "--interval", "0.05"], interrupt)
    assert status == 130
    assert "Traceback" not in drawn
    assert "interrupted\r\n" not in drawn


def test_ctrl_c_while_it_waits_is_quiet(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*WATCH, tmp_path / "run"], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stderr is not None
        watching.stderr.readline()
        watching.send_signal(signal.SIGINT)
        stdout, stderr = watching.communicate(timeout=60)
    assert (watching.returncode, stdout, stderr) == (130, "", "")


# --- the picture


@pytest.mark.parametrize("count", [2, 5, 300])
def test_a_curve_goes_from_its_largest_to_its_smallest_value(count: int) -> None:
    lines = list(curve([float(count - number) for number in range(count)], 40))
    assert len(lines) == 4
    assert max(map(len, lines)) <= 40
    assert lines[0].split()[0] == f"{count:.3f}"
    assert lines[0].split()[1].startswith("█")
    assert lines[-1].split()[0] == "1.000"
    assert lines[-1][-1] == "▁" or count == 300  # a column has the mean of many
    assert lines[-1][-1] != " "


def test_a_curve_leaves_out_what_is_no_number_and_needs_two() -> None:
    assert list(curve([1.0], 40)) == []
    assert list(curve([1.0, float("nan")], 40)) == []
    assert list(curve([2.0, float("nan"), 1.0], 40))[-1].endswith("█ ▁")
    assert len(list(curve([1.0, 1.0], 40))) == 4


def test_no_number_is_cut_at_eighty_columns() -> None:
    large = Row(99_999, {"exact_match": 123456.789}, "123456", 10**14, 10**14, 0.5, 86400.0, 100_000, ("x",) * 10_000)
    from rich.console import Console

    console = Console(width=80)
    with console.capture() as captured:
        console.print(rows_table("exact_match", [large]))
    for text in ("99999", "123456.789", "100.0 TB", "50%", "86400.0", "100000"):
        assert text in captured.get()
    assert "…" not in captured.get()
    assert [size(n) for n in (0, 1500, 2_500_000, 3 * 10**9)] == ["0.0 KB", "1.5 KB", "2.5 MB", "3.0 GB"]
