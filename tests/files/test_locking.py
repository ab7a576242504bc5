import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from florist.errors import DirectoryInUseError, UnwritableOutputError
from florist.files import locking
from florist.files.locking import HOLDER_NAME, LOCK_NAME, is_held, sole_process


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "PATIENCE", 0.2)


def named(directory: Path) -> int:
    pid, host = (directory / ".lock-holder").read_text().split()
    assert host == socket.gethostname()
    return int(pid)


def test_a_directory_is_held_once_at_a_time(tmp_path: Path) -> None:
    held = pytest.raises(DirectoryInUseError, match=f"process {os.getpid()} is at work in it")
    with sole_process(tmp_path):
        with held, sole_process(tmp_path):
            pytest.fail("the block must not run")
        # A rival that was refused leaves the holder's name where it was.
        with held, sole_process(tmp_path):
            pytest.fail("the block must not run")
    for _ in range(2):
        with sole_process(tmp_path):
            assert named(tmp_path) == os.getpid()
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} in ({".lock": b""}, {})


@pytest.mark.parametrize("name", [None, "", "who knows"])
def test_a_holder_without_a_name_is_another_process(name: str | None, tmp_path: Path) -> None:
    with sole_process(tmp_path):
        if name is None:
            (tmp_path / ".lock-holder").unlink()
        else:
            (tmp_path / ".lock-holder").write_text(name)
        with pytest.raises(DirectoryInUseError, match="another process is at work in it"), sole_process(tmp_path):
            pytest.fail("the block must not run")


def test_a_block_that_fails_lets_go(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="told so"), sole_process(tmp_path):
        raise RuntimeError("told so")
    with sole_process(tmp_path):
        pass


def test_what_is_no_lack_of_locks_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), sole_process(tmp_path / "file"):
        pytest.fail("the block must not run")


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_process_that_dies_lets_go(tmp_path: Path) -> None:
    if (child := os.fork()) == 0:
        with sole_process(tmp_path):
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert named(tmp_path) == child
    assert not is_held(tmp_path)
    with sole_process(tmp_path):
        assert named(tmp_path) == os.getpid()
        assert is_held(tmp_path)
    assert not is_held(tmp_path)


@pytest.mark.parametrize("name", ["1 another-machine\n", "who knows\n", "1\n", ""])
def test_a_holder_of_whom_nothing_can_be_known_is_taken_for_alive(name: str, tmp_path: Path) -> None:
    (tmp_path / ".lock-holder").write_text(name)
    assert is_held(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="has no FIFOs")
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_what_is_in_the_place_of_the_holders_name_makes_room_and_nobody_waits(
    make: Callable[[Path], object], tmp_path: Path
) -> None:
    make(tmp_path / HOLDER_NAME)
    assert is_held(tmp_path) or (tmp_path / HOLDER_NAME).is_symlink()
    with sole_process(tmp_path):
        assert is_held(tmp_path)
    assert not (tmp_path / HOLDER_NAME).exists()


def test_a_lock_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).mkdir()
    with pytest.raises(UnwritableOutputError, match=r"its \.lock cannot be opened"), sole_process(tmp_path):
        pytest.fail("the block must not run")
