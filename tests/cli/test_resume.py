"""``florist simulate --resume``: what may change of a run that goes on, and what may not."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import florist as library
from florist.config import read_config, to_toml
from florist.errors import DamagedRunError
from florist.federation.history import RunDirectory
from tests.stored_runs import flip
from tests.stored_runs import tree as all_of
from tests.tiny_federation import configure, run, weights

from .running import Run, refused


@pytest.fixture
def config(tiny_llama: Path, toy_data: Path, tmp_path: Path) -> Path:
    return configure(tmp_path, tiny_llama, toy_data, steps=2, rounds=1)


@pytest.fixture(scope="module")
def two_rounds(tiny_llama: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-rounds")
    kept = ("data.validation_fraction=0.2", "federation.keep_rounds=sent", "lora.target_modules=['q_proj']")
    return run(configure(folder, tiny_llama, toy_data, steps=1, rounds=2), folder / "run", *kept).path


def tree(path: Path) -> dict[str, object]:
    return {name: content for name, content in all_of(path).items() if ".lock" not in name}


@pytest.mark.slow  # several runs
def test_a_run_that_has_ended_goes_on_with_more_rounds(florist: Run, config: Path, tmp_path: Path) -> None:
    path = run(config, tmp_path / "run", "data.validation_fraction=0.2").path
    first = weights(path)
    told = florist("simulate", "--resume", path, "--set", "federation.rounds=3", "--set", "evaluation.every=2")
    assert told.returncode == 0, told.stderr
    whole = run(config, tmp_path / "whole", "data.validation_fraction=0.2", "federation.rounds=3", "evaluation.every=2")
    assert weights(path) == weights(whole.path) != first
    assert (path / "adapter-round-0001" / "adapter_model.safetensors").read_bytes() == first
    assert (path / "test.json").read_text() == (whole.path / "test.json").read_text()
    assert (path / "test-round-0001.json").exists()
    lines = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    assert [(line["round"], bool(line["metrics"])) for line in lines] == [(1, True), (2, True), (3, True)]
    # The changes are written down, and hold for the next time.
    assert read_config(path / "config.toml").federation.rounds == 3
    assert read_config(path / "begun.toml").federation.rounds == 1
    again = florist("simulate", "--resume", path)
    assert again.returncode == 0
    assert weights(path) == weights(whole.path)


def test_what_makes_the_result_is_refused_by_name(florist: Run, config: Path, tmp_path: Path) -> None:
    path = run(config, tmp_path / "run").path
    before = (path / "config.toml").read_text()
    line = refused(
        florist("simulate", "--resume", path, "--set", "aggregation.tau=0.5", "--set", "federation.rounds=2")
    )
    assert "aggregation.tau = 0.5: expected " in line
    assert f"which the run in {path} was begun with" in line
    assert (path / "config.toml").read_text() == before
    # So is a configuration that was edited in the run's directory.
    (path / "config.toml").write_text(to_toml(read_config(path / "config.toml", ["federation.seed=1"])))
    assert "federation.seed = 1: expected 0, which the run in" in refused(florist("simulate", "--resume", path))


@pytest.mark.slow
def test_what_may_change_and_was_edited_is_said(florist: Run, config: Path, tmp_path: Path) -> None:
    path = run(config, tmp_path / "run").path
    (path / "config.toml").write_text(to_toml(read_config(path / "config.toml", ["federation.rounds=2"])))
    told = florist("simulate", "--resume", path)
    assert told.returncode == 0, told.stderr
    assert "the run goes on with federation.rounds = 2 (begun with 1)" in told.stderr
    (path / "begun.toml").write_text((path / "config.toml").read_text())
    before = tree(path)
    assert "begun.toml is not as it was written" in refused(florist("simulate", "--resume", path))
    assert tree(path) == before


SPOILT: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "no pointer": (lambda path: (path / "state" / "current.json").unlink(), "No such file"),
    "empty pointer": (lambda path: (path / "state" / "current.json").write_text(""), "Expecting value"),
    "list": (lambda path: (path / "state" / "current.json").write_text("[]"), "is not as florist wrote it"),
    "FIFO": (
        lambda path: [(path / "state" / "current.json").unlink(), os.mkfifo(path / "state" / "current.json")],
        "found a FIFO",
    ),
    "no lines": (lambda path: (path / "rounds.jsonl").write_text(""), "does not have one line for every round"),
    "more lines": (lambda path: (path / "rounds.jsonl").open("a").write("{}\n"), "more than the 2 rounds"),
    "no state": (lambda path: shutil.rmtree(path / "state"), "No such file"),
}


@pytest.mark.parametrize(("spoil", "telling"), SPOILT.values(), ids=SPOILT.keys())
def test_every_command_refuses_a_damaged_run_and_leaves_it_as_it_is(
    florist: Run, two_rounds: Path, tmp_path: Path, spoil: Callable[[Path], object], telling: str
) -> None:
    path = shutil.copytree(two_rounds, tmp_path / "run")
    spoil(path)
    before = tree(path)
    for words in (
        ("simulate", "--resume", path),
        ("export", path, "-o", tmp_path / "out"),
        ("export", path, "--round", 1, "-o", tmp_path / "out"),
        ("watch", path, "--once"),
        ("report", path),
    ):
        line = refused(florist(*words))
        assert telling in line, words
        assert tree(path) == before
        assert not (tmp_path / "out").exists()


def test_an_edited_configuration_is_not_shown_as_that_of_the_run(
    florist: Run, two_rounds: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(two_rounds, tmp_path / "run")
    file = path / "config.toml"
    file.write_text(to_toml(read_config(file, ["training.learning_rate=0.5"])))
    before = tree(path)
    for words in (
        ("report", path),
        ("watch", path, "--once"),
        ("evaluate", path),
        ("export", path, "-o", tmp_path / "out"),
        ("tune", path),
        ("tune", two_rounds, "--baseline-run", path),
    ):
        line = refused(florist(*words))
        assert "config.toml is not as it was written: its SHA-256 is " in line, words
        assert f"florist simulate --resume {path}" in line, words
        assert tree(path) == before
    assert "training.learning_rate = 0.5: expected " in refused(florist("simulate", "--resume", path))
    shutil.copy(path / "begun.toml", file)
    told = florist("report", path)
    assert told.returncode == 0, told.stderr


NO_CONFIGURATION: Mapping[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "FIFO": lambda file: [file.unlink(), os.mkfifo(file)],
    "link": lambda file: [file.unlink(), file.symlink_to("/dev/null")],
    "folder": lambda file: [file.unlink(), file.mkdir()],
    "nonsense": lambda file: file.open("a").write("= nonsense [\n"),
    "unknown key": lambda file: file.open("a").write("\n[unknown]\nkey = 1\n"),
}


@pytest.mark.parametrize("spoil", NO_CONFIGURATION.values(), ids=NO_CONFIGURATION.keys())
def test_the_way_out_of_a_configuration_that_cannot_be_read_works(
    florist: Run, two_rounds: Path, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    path = shutil.copytree(two_rounds, tmp_path / "run")
    spoil(path / "config.toml")
    way = f"cp {path / 'begun.toml'} {path / 'config.toml'}"
    before = tree(path)
    for words in (("simulate", "--resume", path), ("export", path, "-o", tmp_path / "out"), ("watch", path)):
        line = refused(florist(*words))
        assert way in line, words
        assert "--round" not in line  # of which an export would refuse
        assert tree(path) == before
    line = refused(florist("simulate", "--resume", path))
    told = line[line.index("rm -r") if "rm -r" in line else line.index(way) :]
    subprocess.run(told, shell=True, check=True)  # noqa: S602  # the message is what is tested
    resumed = florist("simulate", "--resume", path)
    assert resumed.returncode == 0, resumed.stderr
    exported = florist("export", path, "--round", 1, "-o", tmp_path / "out")
    assert exported.returncode == 0, exported.stderr


def test_a_damaged_round_is_not_offered_for_an_export_that_refuses(two_rounds: Path, tmp_path: Path) -> None:
    path = shutil.copytree(two_rounds, tmp_path / "run")
    flip(path / "state" / "round-0002" / "cumulative.safetensors")
    (path / "config.toml").open("a").write("# a remark\n")
    way = f"cp {path / 'begun.toml'} {path / 'config.toml'}; then florist export {path} --round 1"
    run = RunDirectory.open(path)
    with pytest.raises(DamagedRunError, match=way):
        run.require_whole()
    run.save_config((path / "config.toml").read_text())
    (path / "config.toml").write_text("")
    with pytest.raises(DamagedRunError, match=r"restore config\.toml from a copy, as it was .*; then florist export"):
        run.require_whole()


def test_an_edit_that_changes_the_final_adapter_writes_it_again(florist: Run, two_rounds: Path, tmp_path: Path) -> None:
    path = shutil.copytree(two_rounds, tmp_path / "run")
    file = path / "config.toml"
    file.write_text(to_toml(read_config(file, ["communication.flush=false"])))
    told = florist("simulate", "--resume", path)
    assert told.returncode == 0, told.stderr
    assert "the run goes on with communication.flush = False (begun with True)" in told.stderr
    assert json.loads((path / "adapter" / "florist.json").read_text())["flushed"] is False
    assert json.loads((path / "adapter-round-0002" / "florist.json").read_text())["flushed"] is True
    again = florist("report", path)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("edit", ["# a remark\n", "\n\n"])
def test_an_edit_of_no_setting_leaves_the_final_adapter_where_it_is(
    florist: Run, two_rounds: Path, tmp_path: Path, edit: str
) -> None:
    path = shutil.copytree(two_rounds, tmp_path / "run")
    with (path / "config.toml").open("a") as file:
        file.write(edit)
    told = florist("simulate", "--resume", path, "--no-report")
    assert (told.returncode, "made again" in told.stderr) == (0, False), told.stderr
    files = {each: content for each, content in tree(two_rounds).items() if "current.json" not in each}
    assert {each: content for each, content in tree(path).items() if "current.json" not in each} == files
    again = florist("watch", path)
    assert again.stdout.endswith(f"the run is over; the final adapter is in {path / 'adapter'}\n")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adapter", Path.touch),
        ("adapter", lambda path: path.symlink_to("/dev/null")),
        ("adapter", lambda path: path.symlink_to("nowhere")),
        ("adapter", os.mkfifo),
        ("test.json", Path.mkdir),
    ],
    ids=["file", "device", "dangling", "FIFO", "folder"],
)
def test_what_is_in_the_place_of_the_result_is_named_before_any_work(
    florist: Run, two_rounds: Path, tmp_path: Path, name: str, make: Callable[[Path], object]
) -> None:
    path = shutil.copytree(two_rounds, tmp_path / "run")
    place = path / name
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    make(place)
    before = tree(path)
    told = florist("simulate", "--resume", path)
    line = refused(told)
    assert f"remove {place}, which is no " in line
    assert "another name" not in line
    assert "made again, from" not in told.stderr
    assert tree(path) == before
    place.rmdir() if place.is_dir() and not place.is_symlink() else place.unlink()
    again = florist("simulate", "--resume", path)
    assert again.returncode == 0, again.stderr
    assert weights(path) == weights(two_rounds)


def test_a_damaged_round_is_refused_by_who_reads_it(florist: Run, two_rounds: Path, tmp_path: Path) -> None:
    path = shutil.copytree(two_rounds, tmp_path / "run")
    flip(path / "state" / "round-0002" / "cumulative.safetensors")
    before = tree(path)
    for words in (("simulate", "--resume", path), ("export", path, "-o", tmp_path / "out")):
        line = refused(florist(*words))
        assert "round-0002/cumulative.safetensors is not as it was written: its SHA-256 is " in line
        assert f"the final adapter in {path / 'adapter'} is whole and round 1 is whole: florist export" in line
        assert tree(path) == before
    told = florist("export", path, "--round", 1, "-o", tmp_path / "out")
    assert told.returncode == 0, told.stderr


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("adapter/adapter_model.safetensors", flip),
        ("adapter/adapter_config.json", lambda file: file.write_text("")),
        ("adapter/florist.json", Path.unlink),
        ("test.json", lambda file: file.write_text('{"metrics": {}, "lower_is_better": {}}')),
        ("adapter/adapter_model.safetensors", lambda file: shutil.rmtree(file.parent)),
    ],
)
def test_a_result_that_is_damaged_is_written_again_and_this_is_said(
    florist: Run, two_rounds: Path, tmp_path: Path, name: str, spoil: Callable[[Path], object]
) -> None:
    path = shutil.copytree(two_rounds, tmp_path / "run")
    spoil(path / name)
    told = florist("export", path, "-o", tmp_path / "out")
    assert told.returncode == 0, told.stderr
    assert f"in the run itself, {name} is " in told.stderr
    told = florist("simulate", "--resume", path)
    assert told.returncode == 0, told.stderr
    assert f"{name} is " in told.stderr
    assert "; the end of the run is made again, from the state after its last round" in told.stderr
    files = {each: content for each, content in tree(two_rounds).items() if "current.json" not in each}
    assert {each: content for each, content in tree(path).items() if "current.json" not in each} == files
    again = florist("simulate", "--resume", path)
    assert again.returncode == 0
    assert "made again" not in again.stderr


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("adapter/adapter_model.safetensors", flip),
        ("adapter/adapter_model.safetensors", lambda file: file.write_text("")),
        ("adapter/adapter_model.safetensors", lambda file: shutil.rmtree(file.parent)),
        ("adapter/adapter_config.json", flip),
        ("test.json", flip),
    ],
    ids=["bit", "empty", "no folder", "configuration", "test"],
)
@pytest.mark.quick(1)
def test_a_damaged_result_is_no_finished_run_for_who_shows_it(
    florist: Run, two_rounds: Path, tmp_path: Path, name: str, spoil: Callable[[Path], object]
) -> None:
    path = shutil.copytree(two_rounds, tmp_path / "run")
    assert f"the run is over; the final adapter is in {path / 'adapter'}" in florist("watch", path).stdout
    spoil(path / name)
    telling = f"the end of the run is damaged: {name} is "
    again = f"it is written again from the state by florist simulate --resume {path}"
    for words in (("watch", path), ("watch", path, "--once"), ("watch", path, "--json"), ("report", path)):
        told = florist(*words, columns=2000)
        assert told.returncode == 0, told.stderr
        where = told.stderr if words[-1] == "--json" or words[0] == "report" else told.stdout
        assert telling in where, words
        assert again in where, words
        assert "the final adapter is in" not in told.stdout
    told = florist("watch", path, "--once", "--json")
    assert telling in told.stderr
    page = (path / "report.html").read_text()
    assert telling in page
    assert f"<td>{path / 'adapter'}</td>" not in page
    assert "How to load the result" not in page


@pytest.mark.slow
def test_a_comparison_with_a_damaged_run_is_refused(florist: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = florist("compare", config, "--methods", "florist,fedit", "--seeds", "1", "-o", out)
    assert told.returncode == 0, told.stderr
    cell = out / "cells" / "florist" / "seed-0"
    adapter = weights(cell)
    flip(cell / "adapter" / "adapter_model.safetensors")
    told = florist("compare", "--resume", out)
    assert told.returncode == 0, told.stderr
    assert f"{cell}: adapter/adapter_model.safetensors is not as it was written" in told.stderr
    assert weights(cell) == adapter
    pointer, configuration = cell / "state" / "current.json", cell.parent / "config.toml"
    as_planned = configuration.read_text()
    configuration.write_text(to_toml(read_config(configuration, ["training.learning_rate=0.5"])))
    before = tree(out)
    said = refused(florist("compare", "--resume", out))
    assert str(out) in said
    assert "cells/florist/config.toml" in said
    assert tree(out) == before
    configuration.write_text(as_planned)
    pointer.unlink()
    before = tree(out)
    assert str(cell) in refused(florist("compare", "--resume", out))
    assert tree(out) == before


def test_code_goes_on_with_a_whole_run_only(tiny_llama: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "model": tiny_llama,
        "clients": {"a": ["red is r", "blue is b"], "b": ["green is g", "red is r"]},
        "ranks": 2,
        "training": {"steps": 1, "threads": 1},
        "out": tmp_path / "run",
        "resume": True,
    }
    library.simulate(**arguments, rounds=1)
    adapter = weights(tmp_path / "run")
    (tmp_path / "run" / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"adapter_model\.safetensors is not as it was written: .*; the end of the run is made again"
    ):
        library.simulate(**arguments, rounds=1)
    assert weights(tmp_path / "run") == adapter
    (tmp_path / "run" / "state" / "current.json").unlink()
    before = tree(tmp_path)
    with pytest.raises(DamagedRunError, match="expected a whole run in"):
        library.simulate(**arguments, rounds=2)
    assert tree(tmp_path) == before


def test_a_run_of_an_older_florist_is_refused_by_name(florist: Run, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"florist": "0.0.9", "method": "florist", "threads": 1, "initial": {}}')
    for words in (("simulate", "--resume", tmp_path), ("watch", tmp_path, "--once"), ("evaluate", tmp_path)):
        line = refused(florist(*words))
        assert "got one that an earlier florist 0.0.9 wrote, before runs had a format number; begin another run" in line


def test_a_run_that_was_begun_from_code_says_how_it_goes_on(florist: Run, tiny_llama: Path, tmp_path: Path) -> None:
    clients = {"a": ["red is r", "blue is b"], "b": ["green is g", "red is r"]}
    training = {"steps": 1, "threads": 1}
    library.simulate(model=tiny_llama, clients=clients, ranks=2, rounds=1, training=training, out=tmp_path / "run")
    line = refused(florist("simulate", "--resume", tmp_path / "run"))
    assert "was begun from code, with objects that no file has; go on in Python with the same arguments" in line
    assert f"florist.simulate(..., out='{tmp_path / 'run'}', resume=True)" in line
