"""A directory that takes the place of another: old or new, and whole, at every moment."""

import errno
from pathlib import Path

import pytest

from florist.errors import OutputExistsError, UnwritableOutputError
from florist.files.outputs import remove_drafts, replaced_directory, restore_replaced


def write(path: Path, text: str) -> None:
    with replaced_directory(path) as draft:
        (draft / "file").write_text(text)


def test_the_new_one_takes_the_place_of_the_old(tmp_path: Path) -> None:
    for text in ("old", "new", "newer"):
        write(tmp_path / "out", text)
        assert (tmp_path / "out" / "file").read_text() == text
        assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_write_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")

    def fail() -> None:
        with replaced_directory(tmp_path / "out") as draft:
            (draft / "file").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert (tmp_path / "out" / "file").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_rename_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", "old")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if target.name == "out" and (self / "file").read_text() == "new":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output"):
        write(tmp_path / "out", "new")
    assert (tmp_path / "out" / "file").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


class _Killed(BaseException):
    """As if the process ended here: nothing is cleaned up."""


@pytest.mark.parametrize("after", [0, 1, 2])
def test_what_a_crash_leaves_is_healed(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends before the first rename, between the two, or before the old directory is removed."""
    out = tmp_path / "out"
    write(out, "old")
    with monkeypatch.context() as patch:
        done = []

        def rename(self: Path, target: Path, rename: object = Path.rename) -> Path:
            if len(done) == after:
                raise _Killed
            done.append(target)
            return rename(self, target)  # pyright: ignore[reportCallIssue]

        def nothing(*_: object, **__: object) -> None:
            if len(done) == after:
                raise _Killed

        patch.setattr(Path, "rename", rename)
        patch.setattr("florist.files.outputs.restore_replaced", lambda _path: None)
        patch.setattr("florist.files.outputs.shutil.rmtree", nothing)
        with pytest.raises(_Killed):
            write(out, "new")
    remove_drafts(tmp_path)
    restore_replaced(out)
    assert (out / "file").read_text() == ("new" if after == 2 else "old")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    write(out, "newer")
    assert (out / "file").read_text() == "newer"


def test_a_file_is_not_replaced_by_a_directory(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(OutputExistsError):
        write(tmp_path / "out", "new")
    with pytest.raises(UnwritableOutputError):
        write(tmp_path / "out" / "deep", "new")
