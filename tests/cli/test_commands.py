"""The command line through its entry point: exit status, stdout, stderr, and what is left on disk.

A new process pays several seconds for its imports, so that most tests call the entry point in this one; those marked
so start the installed command.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from florist.cli import main
from florist.cli.inspect import sparkline

COMMAND = Path(sys.executable).with_name("florist")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Result]


@pytest.fixture
def florist(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["florist", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "120")
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return Result(int(end.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def process() -> Run:
    """Run the installed command in a process of its own."""

    def run(*arguments: object) -> Result:
        done = subprocess.run(
            [COMMAND, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


def refused(result: Result) -> str:
    """The one line that a refusal prints."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("florist: ")
    return lines[0]


def test_help_does_not_import_torch() -> None:
    script = "import sys; sys.argv = ['florist', '--help']\nfrom florist.cli import main\n"
    script += "try:\n    main()\nexcept SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "aggregate" in result.stdout
    assert "simulate" in result.stdout
    assert result.stdout.strip().endswith("0 False")


def test_aggregate_prints_a_table_and_writes_an_adapter(
    florist: Run, saved_adapters: list[Path], tmp_path: Path
) -> None:
    result = florist("aggregate", *saved_adapters, "-o", tmp_path / "out", "--tau", "0.8", "--weights", "0.5,0.25,0.25")
    assert result.returncode == 0, result.stderr
    assert "q_proj" in result.stdout
    assert "times smaller" in result.stdout
    certificate = json.loads((tmp_path / "out" / "florist.json").read_text())
    assert [entry["num_examples"] for entry in certificate["inputs"]] == [2, 1, 1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "florist.json",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_aggregate_json_is_all_of_stdout(process: Run, saved_adapters: list[Path], tmp_path: Path) -> None:
    result = process("aggregate", *saved_adapters, "-o", tmp_path / "out", "--json")
    document = json.loads(result.stdout)
    assert {"method", "tau", "total_rank", "input_rank", "bytes_in", "bytes_out", "modules"} <= document.keys()
    module = next(iter(document["modules"].values()))
    assert {"rank", "input_rank", "energy_kept", "relative_error", "shape"} <= module.keys()
    assert "q_proj" in result.stderr


Break = Callable[[Path], object]


def edit_config(**changes: object) -> Break:
    def edit(adapter: Path) -> None:
        file = adapter / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Break:
    def edit(adapter: Path) -> None:
        file = adapter / "adapter_model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return edit


def first(tensors: dict[str, torch.Tensor], half: str) -> str:
    return min(name for name in tensors if f"lora_{half}" in name)


def last(tensors: dict[str, torch.Tensor], half: str) -> str:
    # beartype looks at the first value of a mapping, which would read it long before the aggregation does.
    return max(name for name in tensors if f"lora_{half}" in name)


BROKEN: dict[str, tuple[Break, str]] = {
    "no lora_B": (edit_tensors(lambda t: t.pop(first(t, "B"))), "has no lora_B"),
    "unlike ranks": (edit_config(r=5), "where the config says rank"),
    "nan": (edit_tensors(lambda t: t[last(t, "A")].fill_(float("nan"))), "NaN"),
    "inf": (edit_tensors(lambda t: t[last(t, "B")].fill_(float("inf"))), "infinity"),
    "integers": (edit_tensors(lambda t: t.update({first(t, "A"): t[first(t, "A")].int()})), "is I32"),
    "shape": (
        edit_tensors(lambda t: t.update({first(t, "A"): torch.zeros(4, 7)})),
        "updates a weight",
    ),
    "base": (edit_config(base_model_name_or_path="elsewhere"), "--allow-base-mismatch"),
    "dora": (edit_config(use_dora=True), "DoRA"),
    "truncated": (lambda a: os.truncate(a / "adapter_model.safetensors", 500), "adapter_model.safetensors"),
    "no weights": (lambda a: (a / "adapter_model.safetensors").unlink(), "expected adapter_model.safetensors"),
    "no config": (lambda a: (a / "adapter_config.json").unlink(), "adapter_config.json"),
    "no json": (lambda a: (a / "adapter_config.json").write_text("{"), "adapter_config.json"),
}


@pytest.mark.parametrize(("spoil", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_adapter_is_refused_in_one_line_and_leaves_nothing(
    florist: Run, saved_adapters: list[Path], tmp_path: Path, spoil: Break, reason: str
) -> None:
    adapter = tmp_path / "broken"
    adapter.mkdir()
    for file in saved_adapters[0].iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    spoil(adapter)
    line = refused(florist("aggregate", saved_adapters[1], adapter, "-o", tmp_path / "out"))
    assert reason in line
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--weights", "3,1"], "a weight for each of the 3 adapters, got 2"),
        (["--weights", "3,1,0"], "a positive number of examples, got 0"),
        (["--weights", "3,1,-2"], "a positive number of examples, got -2"),
        (["--weights", "a,b,c"], "as 3,1,1"),
        (["--tau", "0"], "tau: Input should be greater than 0, got 0.0"),
        (["--tau", "1.5"], "tau: Input should be less than or equal to 1, got 1.5"),
        (["--tau", "0.5", "--budget", "1MB"], "contradict each other"),
        (["--scope", "global", "--rank", "3"], "goes with tau, not with rank"),
        (["--budget", "1MB", "--export", "uniform"], "use --rank or --max-rank"),
        (["--budget", "100"], "rank 1 in each of the 14 modules"),
        (["--rank", "0"], "rank: Input should be greater than 0"),
    ],
)
def test_wrong_options_are_refused(
    florist: Run, saved_adapters: list[Path], tmp_path: Path, arguments: list[str], reason: str
) -> None:
    line = refused(florist("aggregate", *saved_adapters, "-o", tmp_path / "out", *arguments))
    assert reason in line
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_refused_before_any_work(
    florist: Run, saved_adapters: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    assert "already exists" in refused(florist("aggregate", tmp_path / "nothing", "-o", tmp_path / "out"))


def test_an_adapter_that_is_not_there_is_refused(process: Run, tmp_path: Path) -> None:
    assert "nothing" in refused(process("aggregate", tmp_path / "nothing", "-o", tmp_path / "out"))


def simulation(tmp_path: Path, model: Path, data: Path, more: str = "") -> Path:
    file = tmp_path / "config.toml"
    file.write_text(
        f'[model]\nname_or_path = "{model}"\n'
        f'[data]\npath = "{data}"\ntest = "test.json"\nprompt_template = "{{instruction}}\\n"\n'
        f"[lora]\nranks = [4, 2]\n[training]\nsteps = 2\nthreads = 1\n[federation]\nrounds = 1\n{more}"
    )
    return file


def test_simulate_prints_tables_and_json_as_designed(
    process: Run, tiny_llama: Path, toy_data: Path, tmp_path: Path
) -> None:
    config = simulation(tmp_path, tiny_llama, toy_data)
    result = process("simulate", config, "--set", "federation.rounds=2", "-o", tmp_path / "run", "--json")
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
    again = process("simulate", "--resume", tmp_path / "run")
    assert again.returncode == 0
    assert "rounds.jsonl" in again.stdout


@pytest.mark.parametrize("method", ["florist", "fedit", "ffa", "flora", "flexlora", "fedex", "full"])
def test_the_table_of_every_method_shows_what_it_sent(
    florist: Run, tiny_llama: Path, toy_data: Path, tmp_path: Path, method: str
) -> None:
    config = simulation(tmp_path, tiny_llama, toy_data)
    result = florist("simulate", config, "--set", f"aggregation.method={method}", "-o", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    line = json.loads((tmp_path / "run" / "rounds.jsonl").read_text())
    row = next(row.split() for row in result.stdout.splitlines() if row.split()[:1] == ["1"])
    sent = f"{line['broadcast_bytes'] / 1e3:.0f}"
    if method == "full":  # nothing has a rank, and FLoRA could stack nothing
        assert row[3:-1] == ["2", sent]
        assert "FLoRA's stacks" not in result.stdout
    else:
        assert row[3:-1] == ["2", str(line["total_rank"]), str(14 * (4 + 2)), sent, f"{line['stack_bytes'] / 1e3:.0f}"]
        assert "FLoRA's stacks" in result.stdout
    assert json.loads((tmp_path / "run" / "run.json").read_text())["method"] == method


def test_simulate_names_its_own_run(
    florist: Run, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path, toy_data: Path, tmp_path: Path
) -> None:
    config = simulation(tmp_path, tiny_llama, toy_data)
    monkeypatch.chdir(tmp_path)
    assert florist("simulate", config).returncode == 0
    assert (tmp_path / "runs" / "config-1" / "adapter").is_dir()


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


def test_a_directory_that_is_no_run_cannot_be_resumed(florist: Run, tmp_path: Path) -> None:
    assert "run.json" in refused(florist("simulate", "--resume", tmp_path))
    assert "--resume goes on" in refused(florist("simulate", "--resume", tmp_path, "-o", tmp_path / "other"))


def test_inspect_shows_modules_and_says_that_adapters_combine(florist: Run, saved_adapters: list[Path]) -> None:
    result = florist("inspect", *saved_adapters, "--sweep")
    assert result.returncode == 0
    assert "model.layers.0.self_attn.q_proj" in result.stdout
    assert "█" in result.stdout
    assert "these adapters may be aggregated" in result.stdout
    assert "relative error" in result.stdout


def test_inspect_says_why_adapters_do_not_combine(florist: Run, saved_adapters: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in saved_adapters[0].iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    edit_config(base_model_name_or_path="elsewhere")(other)
    result = florist("inspect", saved_adapters[1], other, "--json")
    assert result.returncode == 0
    document = json.loads(result.stdout)
    assert len(document["problems"]) == 1
    assert "elsewhere" in document["problems"][0]
    assert len(document["adapters"]) == 2
    assert "cannot be aggregated as they are" in result.stderr


def test_a_sparkline_follows_the_values() -> None:
    assert sparkline([1.0, 0.5, 0.0]) == "█▄ "
    assert sparkline([4.0, 1e-9]) == "█▁"
    assert len(sparkline([1.0] * 100)) <= 12
    assert sparkline([]) == sparkline([0.0]) == ""
