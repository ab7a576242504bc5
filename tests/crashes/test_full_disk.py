"""A full disk ends a command in one line with exit status 2; nothing is half written, and runs go on."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from florist.config import read_config, to_toml
from florist.config.building import build
from florist.errors import UnwritableOutputError
from florist.federation.history import RunDirectory
from florist.models import loading
from tests.cli.running import Result, Run, refused
from tests.tiny_federation import Silent, configure, run, weights

from .disks import drafts, files_at_most, fill, mounted, remount

MB = 2**20
FULL = "No space left on device; make room on that disk, or choose another place"


@pytest.fixture
def config(tiny_llama: Path, toy_data: Path, tmp_path: Path) -> Path:
    return configure(tmp_path, tiny_llama, toy_data, steps=2, rounds=2)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", 16 * MB) as folder:
        yield folder


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_an_aggregate_without_room_is_refused_and_leaves_nothing(
    florist: Run, saved_adapters: list[Path], tmp_path: Path
) -> None:
    with files_at_most(20_000):
        line = refused(florist("aggregate", *saved_adapters, "-o", tmp_path / "out"))
    assert f"cannot write {tmp_path / 'out'}: File too large; raise the limit on the size of files" in line
    assert names(tmp_path) == []


@pytest.mark.slow
def test_a_run_without_room_says_how_it_goes_on_and_ends_with_the_same_bits(
    florist: Run, config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with files_at_most(20_000):
        line = refused(florist("simulate", config, "-o", out, "--no-report", "--quiet"))
    assert "round-0001: File too large; raise the limit on the size of files (ulimit -f)" in line
    assert line.endswith(f"; then go on with: florist simulate --resume {out}")
    assert drafts(out) == []
    assert RunDirectory.open(out).records() == []
    assert florist("simulate", "--resume", out, "--no-report").returncode == 0
    assert weights(out) == weights(run(config, tmp_path / "whole").path)


def test_a_run_that_cannot_begin_for_want_of_room_leaves_nothing(florist: Run, config: Path, tmp_path: Path) -> None:
    with files_at_most(100):
        line = refused(florist("simulate", config, "-o", tmp_path / "run", "--no-report", "--quiet"))
    assert "run: File too large" in line
    assert "go on" not in line
    assert names(tmp_path) == ["config.toml"]


@pytest.mark.slow  # plays two runs
def test_a_tokenizer_without_room_is_no_traceback(config: Path, tmp_path: Path) -> None:
    """Its library raises a bare `Exception`."""
    whole = run(config, tmp_path / "whole")
    simulation = build(read_config(config))
    run_ = simulation.start(tmp_path / "run", to_toml(read_config(config)), "florist", 1, Silent())

    def fail(directory: Path) -> None:
        with files_at_most(100):
            loading.save_tokenizer(read_config(config).model.name_or_path, directory)

    object.__setattr__(simulation, "save_tokenizer", fail)
    with pytest.raises(UnwritableOutputError, match="adapter: File too large"):
        simulation.run(run_, Silent())
    assert not run_.adapter.exists()
    assert drafts(run_.path) == []
    build(read_config(config)).run(run_, Silent())
    assert weights(run_.path) == weights(whole.path)


@pytest.mark.slow  # plays a part of a run for every amount of room
def test_a_disk_that_is_full_at_every_moment_of_a_run(florist: Run, config: Path, disk: Path, tmp_path: Path) -> None:
    whole = run(config, tmp_path / "whole", "data.validation_fraction=0.2")
    out, told = disk / "run", None
    reached = list[int]()
    for pages in range(0, 400, 5):
        ballast = fill(disk, leave=4096 * pages)
        words = ["--resume", out] if out.exists() else [config, "-o", out, "--set", "data.validation_fraction=0.2"]
        told = florist("simulate", *words, "--no-report", "--quiet", "--json")
        ballast.unlink()
        if told.returncode == 0:
            break
        line = refused(told)
        assert FULL in line
        assert drafts(disk) == []
        if out.exists():
            reached.append(len(RunDirectory.open(out).records()))
            assert line.endswith(f"; then go on with: florist simulate --resume {out}")
            assert not (out / "adapter").exists()
        else:
            assert names(disk) == []
    assert told is not None
    assert told.returncode == 0
    assert len(reached) >= 4
    assert reached == sorted(reached)
    assert set(reached) >= {0, 1}
    assert weights(out) == weights(whole.path)
    assert [line.metrics for line in RunDirectory.open(out).records()] == [line.metrics for line in whole.records()]
    assert RunDirectory.open(out).tested == whole.tested


@pytest.mark.slow  # a comparison, and pages of it
def test_every_command_on_a_full_disk(
    florist: Run, config: Path, disk: Path, saved_adapters: list[Path], tmp_path: Path
) -> None:
    played = run(config, tmp_path / "run").path
    commands: dict[str, Callable[[], Result]] = {
        "aggregate": lambda: florist("aggregate", *saved_adapters, "-o", disk / "aggregate"),
        "export": lambda: florist("export", played, "-o", disk / "export"),
        "report": lambda: florist("report", played, "-o", disk / "report.html"),
        "figures": lambda: florist("report", played, "-o", disk / "page.html", "--figures", disk / "figures"),
        "init": lambda: florist("init", "--preset", "tinyllama-dolly-equal", "-o", disk / "deep" / "init.toml"),
    }
    for name, command in commands.items():
        for leave in (0, 5 * 4096):
            ballast = fill(disk, leave)
            told = command()
            if leave and told.returncode == 0:  # a small file that fits
                ballast.unlink()
                for file in [each for each in disk.rglob("*") if each.is_file()]:
                    file.unlink()
                continue
            line = refused(told)
            assert "No space left on device" in line, (name, leave)
            ballast.unlink()
            assert [file for file in disk.rglob("*") if file.is_file()] == [], (name, leave)
        told = command()
        assert told.returncode == 0, told.stderr
        for file in sorted(disk.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()


@pytest.mark.slow  # two comparisons
@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_a_comparison_on_a_full_disk_goes_on(florist: Run, config: Path, disk: Path, tmp_path: Path, jobs: int) -> None:
    words = ["--methods", "florist,fedit", "--seeds", "1", "--no-report", "--jobs", jobs]
    out, whole = disk / "out", tmp_path / "whole"
    assert florist("compare", config, *words, "-o", whole).returncode == 0
    for pages in (0, 4, 30) if jobs == 1 else (30,):
        ballast = fill(disk, leave=4096 * pages)
        again = ["--resume", out, "--no-report"] if out.exists() else [config, *words, "-o", out]
        line = refused(florist("compare", *again, "--quiet"))
        ballast.unlink()
        assert "No space left on device" in line
        assert drafts(disk) == []
        if (out / "cells" / "florist" / "seed-0").exists():
            assert line.endswith(f"; then go on with: florist compare --resume {out}")
    assert out.exists()
    told = florist("compare", "--resume", out, "--no-report")
    assert told.returncode == 0, told.stderr
    for entry in ("florist", "fedit"):
        assert weights(out / "cells" / entry / "seed-0") == weights(whole / "cells" / entry / "seed-0")


@pytest.mark.slow  # plays a run
def test_a_disk_that_may_not_be_written_to(florist: Run, config: Path, disk: Path, saved_adapters: list[Path]) -> None:
    out = disk / "run"
    assert florist("simulate", config, "-o", out, "--no-report").returncode == 0
    before = {file: file.read_bytes() for file in disk.rglob("*") if file.is_file()}
    remount(disk, "ro")
    try:
        refusals: dict[str, list[Any]] = {
            "aggregate": ["aggregate", *saved_adapters, "-o", disk / "out"],
            "simulate": ["simulate", config, "-o", disk / "other"],
            "resume": ["simulate", "--resume", out, "--set", "federation.rounds=3", "--quiet"],
            "export": ["export", out, "-o", disk / "adapter"],
            "compare": ["compare", config, "--methods", "florist", "--seeds", "1", "-o", disk / "compared"],
            "init": ["init", "--preset", "tinyllama-dolly-equal", "-o", disk / "deep" / "init.toml"],
            "report": ["report", out, "-o", disk / "page.html"],
        }
        for name, words in refusals.items():
            line = refused(florist(*words))
            assert "Read-only file system" in line, name
            assert "choose another place" in line, name
    finally:
        remount(disk, "rw")
    assert {file: file.read_bytes() for file in disk.rglob("*") if file.is_file()} == before


def test_a_module_that_is_imported_under_a_limit_can_be_imported_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "long_module.py").write_text("\n".join(f"name_{n} = {n}" for n in range(500)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    with files_at_most(1000):
        importlib.import_module("long_module")
    del sys.modules["long_module"]
    assert importlib.import_module("long_module").name_499 == 499
