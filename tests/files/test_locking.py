import os
from pathlib import Path

import pytest

from florist.errors import DirectoryInUseError
from florist.files.locking import sole_process


def test_a_directory_is_held_once_at_a_time(tmp_path: Path) -> None:
    held = pytest.raises(DirectoryInUseError, match=f"process {os.getpid()} is at work in it")
    with sole_process(tmp_path), held, sole_process(tmp_path):
        pytest.fail("the block must not run")
    for _ in range(2):
        with sole_process(tmp_path):
            assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
        assert (tmp_path / ".lock").read_text() == ""


def test_a_block_that_fails_lets_go(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="told so"), sole_process(tmp_path):
        raise RuntimeError("told so")
    with sole_process(tmp_path):
        pass


def test_a_process_that_dies_lets_go(tmp_path: Path) -> None:
    if (child := os.fork()) == 0:
        with sole_process(tmp_path):
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert (tmp_path / ".lock").read_text() == f"{child}\n"
    with sole_process(tmp_path):
        pass
