import errno
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from florist.errors import UnwritableOutputError
from florist.files import tensors as module
from florist.files.outputs import new_directory, replace_file, replaced_directory
from florist.files.tensors import save_tensors
from tests.crashes.disks import files_at_most

BIG = {"a": torch.arange(4096.0)}


Make = Callable[[Path], AbstractContextManager[Path]]


def half_written(draft: Path, error: Exception) -> None:
    (draft / "half").touch()
    raise error


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    save_tensors(BIG, tmp_path / "file", {"about": "it"})
    assert torch.equal(load_file(tmp_path / "file")["a"], BIG["a"])


def test_without_room_the_file_stays_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "file"
    save_tensors({"a": torch.ones(2)}, file)
    with files_at_most(1000), pytest.raises(OSError, match="File too large") as refusal:
        save_tensors(BIG, file)
    assert (refusal.value.errno, refusal.value.filename) == (errno.EFBIG, str(file))
    assert names(tmp_path) == ["file"]
    assert torch.equal(load_file(file)["a"], torch.ones(2))


def test_any_other_refusal_is_one_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as refusal:
        save_tensors(BIG, tmp_path / "none" / "file")
    assert refusal.value.filename == str(tmp_path / "none" / "file")


def test_what_is_no_error_of_the_system_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise SafetensorError("a shape is wrong")

    monkeypatch.setattr(module, "save_file", refuse)
    with pytest.raises(SafetensorError, match="a shape is wrong"):
        save_tensors(BIG, tmp_path / "file")


@pytest.mark.parametrize("make", [new_directory, replaced_directory])
@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "No space left on device; make room on that disk, or choose"),
        (errno.EDQUOT, "quota exceeded; make room within your quota"),
        (errno.EROFS, "Read-only file system; make it writable, or choose"),
        (errno.EFBIG, "File too large; raise the limit on the size of files"),
    ],
)
def test_a_directory_without_room_says_what_to_do(number: int, told: str, make: Make, tmp_path: Path) -> None:
    """Libraries in Rust raise errors of their own: tokenizers raises a bare `Exception`."""
    out = tmp_path / "out"
    if make is replaced_directory:
        out.mkdir()
        (out / "earlier").touch()
    for error in (OSError(number, "written by hand"), Exception(f"IO: oh no (os error {number})")):
        with pytest.raises(UnwritableOutputError, match=rf"cannot write {out}: .*{told}"), make(out) as draft:
            half_written(draft, error)
    assert names(tmp_path) == (["out"] if make is replaced_directory else [])


def test_what_is_not_about_writing_is_not_said_to_be(tmp_path: Path) -> None:
    for error in (FileNotFoundError(2, "no such file"), Exception("IO (os error 2)"), OSError("without a number")):
        with pytest.raises(type(error)) as raised, new_directory(tmp_path / "out"):
            raise error
        assert raised.value is error


def test_a_file_without_room_stays_as_it_was(tmp_path: Path) -> None:
    replace_file(tmp_path / "file", "before")
    with files_at_most(1000), pytest.raises(UnwritableOutputError, match=r"cannot write .*file: File too large"):
        replace_file(tmp_path / "file", "a" * 10_000)
    assert (tmp_path / "file").read_text() == "before"
    assert names(tmp_path) == ["file"]
