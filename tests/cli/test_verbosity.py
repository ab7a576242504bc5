"""``--quiet`` and ``--verbose`` mean the same for every command."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from florist.cli.compare_progress import CellsProgress
from florist.cli.output import Output
from florist.cli.progress import Progress
from florist.comparison.planning import Cell, Entry
from florist.errors import ConfigurationError
from tests.comparison.made import a_round

from .running import Run, refused
from .test_commands import simulation


def test_the_two_contradict_each_other() -> None:
    with pytest.raises(ConfigurationError, match="--quiet and --verbose contradict each other"):
        Output(as_json=False, quiet=True, verbose=True)


@pytest.mark.slow
def test_aggregate_is_quiet_or_says_how_it_weighed(florist: Run, saved_adapters: list[Path], tmp_path: Path) -> None:
    def run(name: str, *flags: str) -> tuple[str, str]:
        result = florist("aggregate", *saved_adapters, "-o", tmp_path / "made" / name, *flags)
        assert result.returncode == 0, result.stderr
        return result.stdout, result.stderr

    plain, _ = run("plain")
    quiet, silence = run("quiet", "--quiet")
    assert silence == ""
    assert quiet.replace("/made/quiet", "/made/plain") == plain
    document, silence = run("json", "-q", "--json")
    assert silence == ""
    assert json.loads(document)["total_rank"] > 0
    table, told = run("verbose", "--weights", "3,1,1", "--verbose")
    assert "method = florist, tau = 0.9, scope = per-module" in told
    assert f"as --weights says: {saved_adapters[0]} 3, " in told
    assert sum("q_proj" in line for line in table.splitlines()) == 2  # a line for every module
    assert sum("q_proj" in line for line in plain.splitlines()) == 1
    # An error is printed however quiet it is to be.
    assert "already exists" in refused(florist("aggregate", *saved_adapters, "-o", tmp_path / "made" / "plain", "-q"))


def test_inspect_shows_every_module_to_the_verbose(florist: Run, saved_adapters: list[Path]) -> None:
    every = florist("inspect", saved_adapters[0], "--modules")
    assert florist("inspect", saved_adapters[0], "--verbose").stdout == every.stdout
    assert florist("inspect", saved_adapters[0], "--modules", "--quiet") == every


@pytest.mark.slow
def test_simulate_says_what_was_decided_and_what_every_client_did(
    florist: Run, tiny_llama: Path, toy_data: Path, tmp_path: Path
) -> None:
    config, run = simulation(tmp_path, tiny_llama, toy_data), tmp_path / "new" / "folder" / "run"
    told = florist("simulate", config, "-o", run, "--verbose").stderr
    assert "[aggregation] method = florist, tau = 0.7" in told
    assert "[communication] preset = compact, download = int4" in told
    assert "1 torch threads, as [training] threads says" in told
    (record,) = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    for client in record["clients"]:
        line = next(line for line in told.splitlines() if line.startswith(f"round 1, {client['client_id']}: "))
        assert f"rank {client['rank']}, {client['num_examples']} examples" in line
        assert f"training loss {client['loss']:.3f}, {client['upload_bytes'] / 1e3:.1f} KB up" in line
    quiet = florist("simulate", "--resume", run, "--quiet")
    assert quiet.stderr == ""
    assert "all clients together sent" in quiet.stdout
    document = florist("simulate", "--resume", run, "--quiet", "--json")
    assert document.stderr == ""
    assert json.loads(document.stdout)["run"] == str(run)


def test_compare_tells_of_every_client_where_it_is_to_say_all() -> None:
    for verbose, lines in ((False, 0), (True, 3)):
        stream = StringIO()
        cells = CellsProgress(Progress(Console(file=stream), "runs"), verbose=verbose)
        cells.started(Cell(Entry("fedit"), 3))
        cells.closed(a_round(2, {"loss": 1.0}, clients=2, dropped=1))
        assert len(stream.getvalue().splitlines()) == lines
    assert "fedit, seed 3, round 2, client_1: rank 4, 10 examples" in stream.getvalue()
    assert "fedit, seed 3, round 2, client_2: dropped: layer holds NaN or inf" in stream.getvalue()
