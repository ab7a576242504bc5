"""``florist compare``: what it prints, what it leaves, what it refuses, and going on after an interruption."""

import csv
import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from florist.cli.compare_work import open_comparison
from florist.comparison.directory import ComparisonDirectory
from florist.comparison.planning import Comparison, Entry
from florist.config import read_config, to_toml
from florist.federation.history import RunDirectory
from florist.federation.run_facts import RunFacts

from .running import COMMAND, ENVIRONMENT, Run, refused


@pytest.fixture
def config(tiny_llama: Path, toy_data: Path, tmp_path: Path) -> Path:
    file = tmp_path / "config.toml"
    file.write_text(
        f'[model]\nname_or_path = "{tiny_llama}"\n'
        f'[data]\npath = "{toy_data}"\ntest = "test.json"\nprompt_template = "{{instruction}}\\n"\n'
        "[lora]\nranks = [4, 2]\ntarget_modules = ['q_proj', 'v_proj']\n"
        "[training]\nsteps = 2\nthreads = 1\n[federation]\nrounds = 1\n"
    )
    return file


def names(output: str) -> list[str]:
    return [line.split()[0] for line in output.splitlines() if line.split()]


@pytest.mark.slow
def test_tables_files_and_json_say_the_same(florist: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = florist("compare", config, "--methods", "fedit,florist,full", "--seeds", "2", "-o", out, "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document == json.loads((out / "table.json").read_text())
    assert (document["comparison"], document["reference"]) == (str(out), "florist")
    assert document["metric_source"] == "test examples, last round"
    lines = {line["name"]: line for line in document["rows"]}
    assert list(lines) == ["fedit", "florist", "full"]
    assert [(cell["entry"], cell["seed"]) for cell in document["cells"]] == [
        (name, seed) for seed in (0, 1) for name in lines
    ]
    for cell in document["cells"]:
        (record,) = [json.loads(line) for line in (Path(cell["run"]) / "rounds.jsonl").read_text().splitlines()]
        assert cell["metrics"] == record["metrics"]
        assert cell["upload_bytes"] == record["upload_bytes"]
    losses = {(cell["entry"], cell["seed"]): cell["metrics"]["loss"] for cell in document["cells"]}
    measured = lines["fedit"]["metrics"]["loss"]
    assert measured["mean"] == pytest.approx((losses["fedit", 0] + losses["fedit", 1]) / 2)
    paired = sum(losses["fedit", seed] - losses["florist", seed] for seed in (0, 1)) / 2
    assert measured["difference"]["mean"] == pytest.approx(paired, abs=1e-12)
    assert measured["difference"]["low"] <= paired <= measured["difference"]["high"]
    assert measured["verdict"] is None  # two seeds say nothing
    assert lines["florist"]["metrics"]["loss"]["difference"] is None
    assert lines["full"]["total_rank"] is lines["full"]["efficiency"] is None
    assert lines["fedit"]["efficiency"] == 1 / lines["fedit"]["total_rank"]
    with (out / "table.csv").open() as stream:
        assert [float(line["loss"]) for line in csv.DictReader(stream)] == [
            line["metrics"]["loss"]["mean"] for line in lines.values()
        ]
    with (out / "cells.csv").open() as stream:
        assert [float(line["loss"]) for line in csv.DictReader(stream)] == [*losses.values()]
    # A line for each run, and no table.
    assert "6 of 6: full, seed 1: loss " in result.stderr
    assert [name for name in names(result.stderr) if name in lines] == []
    assert "mean ± 95% interval" not in result.stderr
    # Each line twice, once in either table.
    again = florist("compare", "--resume", out, columns=200)
    assert [name for name in names(again.stdout) if name in lines] == [*lines, *lines]
    assert "against florist" in again.stdout
    assert "mean (lowest to highest) over seeds" in again.stdout
    assert "need at least 3 seeds" in again.stdout
    assert "±" not in again.stdout


def test_a_comparison_goes_on_only_with_its_trackers(
    florist: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked = ["tracking.to=wandb"]
    entries = {entry: read_config(config, tracked) for entry in (Entry("a", ()), Entry("b", ()))}
    comparison = Comparison("0", tuple(entries), (0,), 1)
    ComparisonDirectory.create(tmp_path / "out", comparison, read_config(config, tracked), entries)
    monkeypatch.setattr("florist.tracking.trackers.find_spec", lambda _: None)
    line = refused(florist("compare", "--resume", tmp_path / "out"))
    assert "tracking.to has 'wandb': Weights & Biases is not installed" in line
    assert not list((tmp_path / "out" / "cells").glob("*/seed-*"))
    # A run that is over is not tracked any more: its tables can be made without.
    for cell in comparison.cells:
        directory = ComparisonDirectory(tmp_path / "out")
        run = RunDirectory.create(directory.run_path(cell), to_toml(directory.config(cell)), RunFacts("0", "m", 1, {}))
        run.adapter.mkdir()
        (run.adapter / "adapter_model.safetensors").touch()
        run.result.record_adapter()
    assert open_comparison(tmp_path / "out").comparison == comparison


@pytest.mark.slow
def test_variants_alone_are_compared_with_the_configuration_as_it_is(
    florist: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    variant = "[bold] 1: aggregation.tau=1.0, lora.ranks=[2, 4]"
    result = florist("compare", config, "--variant", variant, "--seeds", "7,", "--set", "data.validation_fraction=0.2")
    assert result.returncode == 0, result.stderr
    document = json.loads((tmp_path / "runs" / "compare-config-1" / "table.json").read_text())
    assert [line["name"] for line in document["rows"]] == ["florist", "[bold] 1"]
    assert document["metric_source"] == "test examples, final adapter"
    assert document["seeds"] == [7]
    other = document["rows"][1]["metrics"]["loss"]
    assert (other["low"], other["difference"]["low"], other["verdict"]) == (None, None, None)
    assert document["rows"][1]["validation"]["loss"]["mean"] != other["mean"]
    assert "[bold] 1" in result.stdout
    kept = (tmp_path / "runs" / "compare-config-1" / "cells" / "bold-1" / "config.toml").read_text()
    assert "tau = 1.0" in kept
    assert "ranks = [\n    2,\n    4,\n]" in kept


def test_a_run_that_failed_is_in_the_table_and_in_the_exit_status(florist: Run, config: Path, tmp_path: Path) -> None:
    variant = "wild: training.learning_rate=1e38"
    result = florist("compare", config, "--variant", variant, "--seeds", "1", "-o", tmp_path / "out")
    assert result.returncode == 1
    assert "wild, seed 0 failed: round 1, the last, had too few usable updates (client_0: " in result.stdout
    assert "2 of 2: wild, seed 0: failed: round 1" in result.stderr
    florist_line, wild = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert florist_line["seeds"] == [0]
    assert wild["seeds"] == []
    assert list(wild["failures"]) == ["0"]


@pytest.mark.parametrize(
    ("words", "reasons"),
    [
        (["--methods", "fedit,fedditt"], ["florist: --methods fedditt: expected all, or some of florist, fedit, "]),
        (["--methods", "fedit,fedit"], ["unlike names"]),
        (
            ["--variant", "a: aggregation.tua=1"],
            ["a: aggregation.tua=1: unknown key aggregation.tua", "aggregation.tau?"],
        ),
        (["--variant", "aggregation.tau=1"], ["expected --variant 'NAME: "]),
        (["--variant", "a:"], ["expected --variant 'NAME: "]),
        (["--variant", "a: federation.seed=3"], ["a: ", "--seeds"]),
        (["--variant", "a: lora.ranks=[4,2,1]"], ["a: ", "lora.ranks lists 3 clients"]),
        (["--variant", "a: lora.target_modules=['nothing']"], ["a: ", "nothing"]),
        (["--seeds", "none"], ["expected --seeds"]),
        (["--jobs", "0"], ["--jobs"]),
        (["--set", "data.path=/nowhere"], ["/nowhere"]),
    ],
    ids=lambda words: words[-1],
)
def test_a_wrong_comparison_is_refused_in_one_line_and_leaves_nothing(
    florist: Run, config: Path, tmp_path: Path, words: list[str], reasons: list[str]
) -> None:
    line = refused(florist("compare", config, *words, "-o", tmp_path / "out"))
    for reason in reasons:
        assert reason in line
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_only_a_comparison_can_be_resumed_and_only_as_it_is(florist: Run, tmp_path: Path) -> None:
    assert "no comparison.json" in refused(florist("compare", "--resume", tmp_path))
    assert "--resume goes on" in refused(florist("compare", "--resume", tmp_path, "--methods", "all"))
    assert "--resume goes on" in refused(florist("compare", "--resume", tmp_path, "--seeds", "4"))


def killed(words: list[object], appears: Path, how: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Run a command until a file appears, and send it a signal."""
    command = [COMMAND, *map(str, words)]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not appears.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(how)
        stdout, stderr = process.communicate(timeout=120)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


@pytest.mark.slow  # every process loads the libraries
def test_interrupted_and_killed_a_comparison_ends_as_if_nothing_had_been(
    florist: Run, config: Path, tmp_path: Path
) -> None:
    settings = ["--methods", "florist,fedit", "--seeds", "1", "--set", "federation.rounds=3"]
    settings += ["--set", "training.steps=20"]
    out, whole = tmp_path / "out", tmp_path / "whole"
    first, second = (out / "cells" / entry / "seed-0" for entry in ("florist", "fedit"))
    stopped = killed(["compare", config, *settings, "-o", out], first / "state" / "round-0001", signal.SIGINT)
    assert (stopped.returncode, stopped.stdout) == (130, "")
    *waited, last = stopped.stderr.splitlines()
    assert last == f"interrupted; go on with: florist compare --resume {out}"
    assert all(line[0].isdigit() for line in waited)  # a busy machine says every 10 s what it is at
    assert not (first / "adapter").exists()
    stopped = killed(["compare", "--resume", out], second / "state" / "round-0001", signal.SIGKILL)
    assert stopped.returncode == -signal.SIGKILL
    assert (first / "adapter").exists()
    assert not (second / "adapter").exists()
    assert not (out / "table.json").exists()
    resumed = florist("compare", "--resume", out, "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert "1 of 2 runs are over" in resumed.stderr
    assert "2 of 2: fedit, seed 0: loss " in resumed.stderr
    uninterrupted = florist("compare", config, *settings, "-o", whole, "--json")
    for entry in ("florist", "fedit"):
        file = Path("cells", entry, "seed-0", "adapter", "adapter_model.safetensors")
        assert (out / file).read_bytes() == (whole / file).read_bytes()
    found, expected = (
        [
            (line["name"], line["metrics"], line["total_rank"], line["upload_bytes"], line["download_bytes"])
            for line in lines
        ]
        for lines in (json.loads(result.stdout)["rows"] for result in (resumed, uninterrupted))
    )
    assert found == expected


@pytest.mark.slow  # every process loads the libraries
@pytest.mark.parametrize(
    ("how", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.soak)],
)
def test_processes_end_with_the_one_that_started_them(
    config: Path, tmp_path: Path, how: signal.Signals, status: int
) -> None:
    out = tmp_path / "out"
    words = ["compare", config, "--methods", "florist,fedit", "--seeds", "2", "--jobs", "2", "-o", out]
    words += ["--set", "federation.rounds=50"]
    stopped = killed(words, out / "cells" / "florist" / "seed-0" / "state" / "round-0001", how)
    assert stopped.returncode == status
    assert "Traceback" not in stopped.stderr

    def rounds() -> list[str]:
        return [file.read_text() for file in sorted(out.glob("cells/*/*/state/current.json"))]

    time.sleep(1)  # a moment to die in
    before = rounds()
    time.sleep(3)
    assert rounds() == before
    assert len(before) < 4


@pytest.mark.slow
def test_methods_that_continue_keep_the_codec_and_drop_the_feedback(florist: Run, config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text() + '[communication]\nupload = "int8"\nupload_tau = 0.8\nfeedback = true\n')
    out = tmp_path / "out"
    told = florist("compare", config, "--methods", "florist,fedit,full", "--seeds", "1", "-o", out)
    assert told.returncode == 0, told.stderr
    note = "fedit, full: without communication.feedback and communication.upload_tau, which the method cannot use"
    assert note in " ".join(told.stdout.split())
    kept = {name: read_config(out / "cells" / name / "config.toml").communication for name in ("florist", "fedit")}
    assert (kept["florist"].upload, kept["florist"].upload_tau, kept["florist"].feedback) == ("int8", 0.8, True)
    assert (kept["fedit"].upload, kept["fedit"].upload_tau, kept["fedit"].feedback) == ("int8", None, False)


@pytest.mark.slow
def test_a_variant_may_have_its_own_communication(florist: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compact = ("--variant", "compact: communication.preset=compact")
    told = florist(
        "compare", config, "--set", "communication.preset=plain", *compact, "--seeds", "1", "-o", out, "--json"
    )
    assert told.returncode == 0, told.stderr
    assert "without communication" not in told.stderr
    lines = {line["name"]: line for line in json.loads(told.stdout)["rows"]}
    assert lines["compact"]["upload_bytes"] < lines["florist"]["upload_bytes"] / 5
    assert lines["compact"]["download_bytes"] < lines["florist"]["download_bytes"] / 5
    line = refused(
        florist("compare", config, "--variant", "x: aggregation.method=fedit, communication.feedback=true", "-o", "y")
    )
    assert "x: " in line
    assert "communication.feedback = True is for methods whose clients add the exact sum" in line


@pytest.mark.slow
def test_all_methods_take_what_they_can_of_a_preset(florist: Run, config: Path, tmp_path: Path) -> None:
    words = ("--methods", "all", "--seeds", "1", "--set", "communication.preset=compact", "-o", tmp_path / "out")
    told = florist("compare", config, *words)
    assert told.returncode == 0, told.stderr
    without = "communication.feedback and communication.upload_tau"
    others = f"fedit, ffa, flexlora, fedex, fedsvd, raflora, full: without {without}"
    assert others in " ".join(told.stdout.split())
