"""The files that say what a run is are those that were written, or are refused by name where they are used."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from florist.data.partition import LabelCounts
from florist.errors import DamagedRunError
from florist.federation import own_files
from florist.federation.damage import DamagedFileError
from florist.federation.following import read_status
from florist.federation.history import RunDirectory
from florist.federation.last_round import CURRENT, read_last_round, write_last_round
from florist.federation.own_files import BEGUN, CONFIG, EXAMPLES, OwnFiles
from florist.files.outputs import replace_file
from tests.stored_runs import FACTS, record, state

BEFORE, AFTER = "[federation]\nrounds = 2\n", "[federation]\nrounds = 5\n"
COUNTS = LabelCounts(("a", "b"), ("x", "y"), ((1, 2), (3, 4)))


class KilledError(Exception):
    """Stands for SIGKILL."""


def begun(folder: Path) -> RunDirectory:
    run = RunDirectory.create(folder / "run", BEFORE, FACTS, COUNTS)
    run.save(state(1), record(1))
    return run


def refused(run: RunDirectory, telling: str) -> None:
    way = f"cp {run.begun_file} {run.config_file}"
    for read in (lambda: run.played_config, lambda: read_status(run.path)):
        with pytest.raises(DamagedRunError, match=rf"{telling}.*{way}") as refusal:
            read()
        # A run without a configuration does not go on, and is not told to.
        assert ("simulate --resume" in str(refusal.value)) == run.config_file.is_file()


@pytest.mark.parametrize(
    ("spoil", "telling"),
    [
        (lambda file: file.write_text(AFTER), r"config\.toml is not as it was written"),
        (Path.unlink, r"config\.toml is missing"),
        (lambda file: [file.unlink(), file.symlink_to("/dev/zero")], r"config\.toml cannot be read.*a device"),
    ],
)
def test_a_configuration_that_the_run_was_not_played_with_is_refused(
    spoil: Callable[[Path], object], telling: str, tmp_path: Path
) -> None:
    run = begun(tmp_path)
    assert run.played_config.read_text() == BEFORE
    status = read_status(run.path)
    assert status is not None
    assert status.rounds == 2
    spoil(run.config_file)
    refused(run, telling)
    assert run.records() == [record(1)]  # of which nothing is in doubt


def test_a_change_is_known_once_the_run_has_taken_it_over(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.config_file.write_text(AFTER)
    run.save_config(AFTER)
    assert run.played_config.read_text() == AFTER
    run.save(state(2), record(2))
    assert run.played_config.read_text() == AFTER
    assert run.begun_file.read_text() == BEFORE
    run.config_file.write_text(BEFORE)  # what it was before is an edit like any other
    refused(run, r"config\.toml is not as it was written.*say what was changed since")
    run.begun_file.write_text("")
    assert run.own_files.way_back().startswith("restore config.toml from a copy; begun.toml")


@pytest.mark.parametrize("moment", range(6))
def test_a_kill_while_the_configuration_is_replaced_is_no_damage(
    moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, done = begun(tmp_path), 0

    def killed(path: Path, content: str) -> None:
        nonlocal done
        if done == moment:
            raise KilledError
        replace_file(path, content)
        done += 1
        if done == moment:
            raise KilledError

    monkeypatch.setattr("florist.federation.own_files.replace_file", killed)
    monkeypatch.setattr("florist.federation.last_round.replace_file", killed)
    if moment <= 3:
        with pytest.raises(KilledError):
            run.save_config(AFTER)
    else:
        run.save_config(AFTER)
    monkeypatch.undo()
    assert run.played_config.read_text() == (BEFORE if moment < 2 else AFTER)
    run.save(state(2), record(2))  # before anybody puts it right
    assert run.played_config.read_text() in {BEFORE, AFTER}
    run.save_config(AFTER)
    assert run.played_config.read_text() == AFTER
    assert not read_last_round(run.path / CURRENT).being_replaced


def test_a_reader_is_not_led_astray_by_a_change_that_comes_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(tmp_path)
    before = read_last_round(run.path / CURRENT)
    run.save_config(AFTER)
    reads = iter([before])
    monkeypatch.setattr(own_files, "read_last_round", lambda file: next(reads, None) or read_last_round(file))
    assert run.played_config.read_text() == AFTER


def test_who_has_which_examples_is_known_by_its_hash(tmp_path: Path) -> None:
    run = begun(tmp_path)
    assert run.examples == COUNTS
    text = (run.path / EXAMPLES).read_text()
    for content in (text.replace("4", "5"), "", None):
        (run.path / EXAMPLES).unlink()
        if content is not None:
            (run.path / EXAMPLES).write_text(content)
        with pytest.raises(DamagedRunError, match=r"examples\.json is "):
            run.examples  # noqa: B018  # the access is the test
        if content is None:
            break
    run.require_whole()  # a resumption does not read it


def test_counts_that_florist_did_not_write_are_none(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", BEFORE, FACTS)
    (run.path / EXAMPLES).write_text('{"clients": ["a"], "labels": ["x"], "counts": [[1]]}')
    assert run.examples is None


@pytest.mark.parametrize("name", [BEGUN, "run.json", CONFIG])
def test_every_run_has_the_hashes_of_these(name: str, tmp_path: Path) -> None:
    run = begun(tmp_path)
    last = read_last_round(run.path / CURRENT)
    left = {each: digest for each, digest in last.own_files.items() if each != name}
    write_last_round(run.path / CURRENT, replace(last, own_files=left))
    with pytest.raises(DamagedFileError, match="is not among the files that were written"):
        OwnFiles(run.path).whole(name)
    with pytest.raises(DamagedRunError, match="is not among the files that were written"):
        run.require_whole() if name != CONFIG else run.played_config
