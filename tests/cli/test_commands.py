"""``florist simulate`` and what holds for every command: exit status, stdout, stderr, and what is left on disk.

A new process pays several seconds for its imports, so that most tests call the entry point in this one; those marked
so start the installed command.
"""

import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

import florist.cli
from florist.config.methods import METHODS
from florist.federation.simulation import Simulation
from florist.files.locking import sole_process
from tests.tiny_federation import weights

from .running import ENVIRONMENT, Run, refused

COMMANDS = (
    "aggregate",
    "compare",
    "evaluate",
    "export",
    "extract",
    "init",
    "inspect",
    "plan",
    "report",
    "simulate",
    "tune",
    "watch",
)


@pytest.mark.parametrize("words", [(), *((command,) for command in COMMANDS)], ids=" ".join)
def test_help_does_not_import_torch(words: tuple[str, ...]) -> None:
    script = f"import sys; sys.argv = ['florist', *{words!r}, '--help']\nfrom florist.cli import main\n"
    script += "try:\n    main()\nexcept SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for expected in words or COMMANDS:
        assert expected in result.stdout
    assert result.stdout.strip().endswith("0 False")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_a_module_of_its_name(command: str) -> None:
    module = import_module(f"florist.cli.{command}")
    assert isinstance(getattr(florist.cli, command), ModuleType)
    assert callable(getattr(module, f"{command}_command"))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["aggregate", "x", "-o", "y", "--tau", "abc"], "'abc' is not a valid float"),
        (["aggregate", "x", "-o", "y", "--dtype", "int8"], "not one of 'float32', 'bfloat16', 'float16'"),
        (["aggregate", "x"], "Missing option '--out'"),
        (["aggregate"], "Missing argument 'ADAPTERS...'"),
        (["inspect", "x", "--nonsense"], "No such option"),
        (["nonsense"], "No such command 'nonsense'"),
        (["--nonsense"], "No such option"),
    ],
    ids=" ".join,
)
def test_a_command_line_that_cannot_be_parsed_is_refused_in_one_line(
    florist: Run, words: list[str], reason: str
) -> None:
    line = refused(florist(*words))
    assert reason in line
    assert line.endswith(" --help.")


def test_no_command_at_all_is_answered_with_help(florist: Run) -> None:
    result = florist()
    assert result.returncode == 2
    assert "aggregate" in result.stdout
    assert result.stderr == ""


def test_the_version_is_printed(florist: Run) -> None:
    result = florist("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"florist {version('florist')}\n", "")


WAITING = """
import sys, time
import florist.cli
from florist import one_shot

def combine(*_, **__):
    print("waiting", flush=True)
    time.sleep(60)

one_shot.combine = combine
sys.exit(florist.cli.main())
"""
"""The command in a process of its own, which waits in the middle of its work until the interruption comes."""


def test_an_interrupted_command_says_so_and_leaves_nothing(saved_adapters: list[Path], tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, "aggregate", *saved_adapters[:2], "-o", tmp_path / "out", "--weights", "1,1"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "waiting\n"
        command.send_signal(signal.SIGINT)
        stdout, stderr = command.communicate(timeout=60)
    assert command.returncode == 130
    assert stdout == ""
    assert stderr.splitlines()[-1] == "florist: interrupted"
    assert list(tmp_path.iterdir()) == []


def simulation(tmp_path: Path, model: Path, data: Path, more: str = "") -> Path:
    file = tmp_path / "config.toml"
    file.write_text(
        f'[model]\nname_or_path = "{model}"\n'
        f'[data]\npath = "{data}"\ntest = "test.json"\nprompt_template = "{{instruction}}\\n"\n'
        f"[lora]\nranks = [4, 2]\n[training]\nsteps = 2\nthreads = 1\n[federation]\nrounds = 1\n{more}"
    )
    return file


def test_simulate_prints_tables_and_json_as_designed(
    process: Run, florist: Run, tiny_llama: Path, toy_data: Path, tmp_path: Path
) -> None:
    config = simulation(tmp_path, tiny_llama, toy_data)
    result = process(
        "simulate", config, "--set", "federation.rounds=2", "-o", tmp_path / "run", "--json", "--no-report"
    )
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["run"] == str(tmp_path / "run")
    assert document["method"] == "florist"
    assert document["initial"]["metrics"]["loss"] > 0
    assert [line["round"] for line in document["rounds"]] == [1, 2]
    expected = {"metrics", "total_rank", "upload_bytes", "download_bytes", "clients", "dropped", "seconds"}
    assert expected <= document["rounds"][0].keys()
    lines = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == document["rounds"]
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").exists()
    assert "FLoRA" in result.stderr
    assert "examples of" not in result.stderr  # there is no table
    assert "test" not in document
    again = florist("simulate", "--resume", tmp_path / "run")
    assert again.returncode == 0
    assert "rounds.jsonl" in again.stdout
    # Who holds what: four examples of each colour with one client, eight with the other.
    picture = [line.split() for line in again.stderr.splitlines() if line.strip().startswith("client_")]
    assert picture[:2] == [["client_0", *["4", "▒"] * 3, "12"], ["client_1", *["8", "▒"] * 3, "24"]]


def test_simulate_tests_the_final_adapter_once(florist: Run, tiny_llama: Path, toy_data: Path, tmp_path: Path) -> None:
    config = simulation(tmp_path, tiny_llama, toy_data)
    result = florist("simulate", config, "--set", "data.validation_fraction=0.2", "-o", tmp_path / "run", "--json")
    document = json.loads(result.stdout)
    assert document["test"] == json.loads((tmp_path / "run" / "test.json").read_text())
    assert document["test"]["lower_is_better"] == {"loss": True, "perplexity": True}
    assert document["test"]["metrics"].keys() == document["rounds"][-1]["metrics"].keys()
    assert document["test"]["metrics"] != document["rounds"][-1]["metrics"]
    assert "the final adapter on the test examples: loss" in result.stderr


def test_a_simulation_without_a_usable_round_says_so(
    florist: Run, tiny_llama: Path, toy_data: Path, tmp_path: Path
) -> None:
    config = simulation(tmp_path, tiny_llama, toy_data)
    flags = ("--set", "training.learning_rate=1e38", "--json")
    for words in ((config, *flags, "-o", tmp_path / "run"), ("--resume", tmp_path / "run", "--json")):
        result = florist("simulate", *words)
        assert result.returncode == 1
        document = json.loads(result.stdout)
        assert document["adapter"] is None
        assert [line["aggregated"] for line in document["rounds"]] == [False]
        assert "client_0 dropped from round 1: " in result.stderr
        assert "no final adapter: no round had enough usable updates" in result.stderr


def test_a_loss_that_is_no_number_is_null_in_strict_json(
    florist: Run, tiny_llama: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = simulation(tmp_path, tiny_llama, toy_data)
    monkeypatch.setattr(Simulation, "evaluate", lambda *_: {"loss": float("nan")})
    result = florist("simulate", config, "-o", tmp_path / "run", "--json")
    assert json.loads(result.stdout, parse_constant=pytest.fail)["initial"] == {"metrics": {"loss": None}}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.quick(1)
def test_the_table_of_every_method_shows_what_it_sent(
    florist: Run, tiny_llama: Path, toy_data: Path, tmp_path: Path, method: str
) -> None:
    config = simulation(tmp_path, tiny_llama, toy_data)
    plain = ("--set", "communication.preset=plain", "--set", f"aggregation.method={method}")
    result = florist("simulate", config, *plain, "-o", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    line = json.loads((tmp_path / "run" / "rounds.jsonl").read_text())
    row = next(row.split() for row in result.stdout.splitlines() if row.split()[:1] == ["1"])
    up, down, stack = (f"{line[key] / 1e3:.0f}" for key in ("upload_bytes", "download_bytes", "stack_bytes"))
    twice = f"{2 * line['stack_bytes'] / 1e3:.0f}"
    if method == "full":  # nothing has a rank, and FLoRA could stack nothing
        assert row[3:-1] == ["2", up, down]
        assert "FLoRA" not in result.stdout.partition("all clients")[2]
    else:
        assert row[3:-1] == ["2", str(line["total_rank"]), str(14 * (4 + 2)), up, stack, down, twice]
        sent, both = line["upload_bytes"] + line["download_bytes"], 3 * line["stack_bytes"]
        assert f"FLoRA would take {both / 1e6:.2f} MB for both ({both / sent:.1f} times as much)" in result.stdout
        assert "FLoRA's stacks" in result.stdout
    assert "held back" not in result.stdout
    assert json.loads((tmp_path / "run" / "run.json").read_text())["method"] == method


@pytest.mark.slow
def test_what_is_held_back_is_shown_and_flushed_where_asked(
    florist: Run, tiny_llama: Path, toy_data: Path, tmp_path: Path
) -> None:
    config = simulation(tmp_path, tiny_llama, toy_data)
    words = ("--set", "communication.preset=compact", "--set", "federation.rounds=2")
    told = florist("simulate", config, *words, "-o", tmp_path / "run")
    assert told.returncode == 0, told.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    for line in lines:
        row = next(row.split() for row in told.stdout.splitlines() if row.split()[:1] == [str(line["round"])])
        # What FLoRA sends is not cut: both halves of every module, at each client's rank.
        assert (line["input_rank"], line["stack_bytes"]) == (14 * (4 + 2), lines[0]["stack_bytes"])
        assert row[-2] == f"{line['relative_error']:.0%}"
        assert 0 < line["codec_error"] < line["held_back"]
        assert all(client["held_back"] > 0 for client in line["clients"])
        assert line["upload_bytes"] + line["download_bytes"] < 3 * line["stack_bytes"] / 5
    tail = f"the server still holds back {lines[1]['relative_error']:.0%} of what was due in round 2; the final adapter"
    assert f"{tail} has it" in told.stdout

    first = weights(tmp_path / "run")
    without = florist("simulate", config, *words, "--no-flush", "-o", tmp_path / "without")
    assert f"{tail} does not have it" in without.stdout
    assert weights(tmp_path / "without") != first
    # A run that has ended can be told otherwise, and back.
    assert florist("simulate", "--resume", tmp_path / "run", "--no-flush").returncode == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "without")
    aside = tmp_path / "run" / "adapter-round-0002" / "adapter_model.safetensors"
    assert aside.read_bytes() == first
    assert florist("simulate", "--resume", tmp_path / "run").returncode == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "without")
    assert florist("simulate", "--resume", tmp_path / "run", "--flush").returncode == 0
    assert weights(tmp_path / "run") == first


def test_simulate_names_its_own_run(
    florist: Run, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path, toy_data: Path, tmp_path: Path
) -> None:
    config = simulation(tmp_path, tiny_llama, toy_data)
    monkeypatch.chdir(tmp_path)
    assert florist("simulate", config).returncode == 0
    assert (tmp_path / "runs" / "config-1" / "adapter").is_dir()


@pytest.mark.parametrize("command", ["simulate", "compare"])
def test_a_place_for_runs_that_cannot_be_created_is_refused_before_any_work(
    florist: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    # No model is looked for, which is not there.
    config = simulation(tmp_path, tmp_path / "no model", tmp_path / "no data")
    (tmp_path / "runs").touch()
    monkeypatch.chdir(tmp_path)
    assert "runs already exists" in refused(florist(command, config))


@pytest.mark.parametrize(
    ("overrides", "reasons"),
    [
        (["data.path=/nowhere"], ["data directory /nowhere"]),
        (["data.test=none.json"], ["none.json"]),
        (["model.name_or_path=/nowhere"], ["no such directory or hub id"]),
        (["training.learning_rat=1"], ["training.learning_rat", "training.learning_rate?"]),
        (["federation.tau=0.5"], ["aggregation.tau?"]),
        (["aggregation.tau=2", "training.epochs=1", "fedration.rounds=3"], ["tau", "contradict", "[federation]?"]),
        (["lora.ranks=[4,2,1]"], ["lora.ranks lists 3 clients"]),
        (["rounds=3"], ["expected --set section.key=value"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_wrong_simulation_is_refused_in_one_line_and_leaves_nothing(
    florist: Run, tiny_llama: Path, toy_data: Path, tmp_path: Path, overrides: list[str], reasons: list[str]
) -> None:
    config = simulation(tmp_path, tiny_llama, toy_data)
    flags = [word for override in overrides for word in ("--set", override)]
    line = refused(florist("simulate", config, *flags, "-o", tmp_path / "run"))
    for reason in reasons:
        assert reason in line
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


@pytest.mark.slow
def test_a_run_that_another_process_plays_is_left_alone(
    florist: Run, tiny_llama: Path, toy_data: Path, tmp_path: Path
) -> None:
    assert florist("simulate", simulation(tmp_path, tiny_llama, toy_data), "-o", tmp_path / "run").returncode == 0
    with sole_process(tmp_path / "run"):
        result = florist("simulate", "--resume", tmp_path / "run")
    assert result.returncode == 2
    assert f"run for this process alone, and process {os.getpid()} is at work in it" in result.stderr.splitlines()[-1]


def test_a_directory_that_is_no_run_cannot_be_resumed(florist: Run, tmp_path: Path) -> None:
    assert "run.json" in refused(florist("simulate", "--resume", tmp_path))
    told = refused(florist("simulate", "--resume", tmp_path, "-o", tmp_path / "other"))
    assert (
        "--set may change federation.rounds, early_stopping and min_delta, evaluation, tracking and communication.flush"
        in told
    )
