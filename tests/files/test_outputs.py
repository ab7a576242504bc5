import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from florist.errors import FloristError, MissingInputError, OutputExistsError, UnwritableOutputError
from florist.files.holding import hold
from florist.files.outputs import (
    new_directory,
    remove,
    remove_drafts,
    remove_stale,
    replace_file,
    require_absent,
    sha256,
)


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Generator[int, None, None]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_a_new_directory_appears_whole_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with new_directory(target) as draft:
        (draft / "deep" / "er").mkdir(parents=True)
        (draft / "deep" / "er" / "file").write_text("content")
        (draft / "empty").mkdir()
        assert not target.exists()
    assert (target / "deep" / "er" / "file").read_text() == "content"
    assert (target / "empty").is_dir()
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_when_the_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error, match="told so"), new_directory(tmp_path / "out") as draft:  # noqa: PT012  # the block is the test
        (draft / "deep").mkdir()
        (draft / "deep" / "file").write_text("content")
        raise error("told so")
    assert names(tmp_path) == []


def test_nothing_is_left_visible_when_the_process_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal\n"
        "from florist.files.outputs import new_directory\n"
        "with new_directory(pathlib.Path('out')) as draft:\n"
        "    (draft / 'half').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    with new_directory(tmp_path / "out") as draft:
        (draft / "whole").touch()
    assert names(tmp_path / "out") == ["whole"]


@pytest.mark.parametrize("kind", ["file", "directory", "empty directory", "dangling link"])
def test_an_existing_target_is_refused_before_the_block_and_kept(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    if kind == "file":
        target.write_text("mine")
    elif kind == "dangling link":
        target.symlink_to(tmp_path / "nowhere")
    else:
        target.mkdir()
        if kind == "directory":
            (target / "mine").touch()
    before = [target.is_symlink(), target.is_dir() and names(target), target.is_file() and target.read_text()]
    with pytest.raises(OutputExistsError, match="out already exists and florist does not overwrite: choose another"):
        require_absent(target)
    with pytest.raises(OutputExistsError), new_directory(target):
        pytest.fail("the block must not run")
    assert before == [
        target.is_symlink(),
        target.is_dir() and names(target),
        target.is_file() and target.read_text(),
    ]
    assert names(tmp_path) == ["out"]


def test_folders_on_the_way_are_made_with_the_target_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "out"
    require_absent(target)
    assert names(tmp_path) == []
    with new_directory(target) as draft:
        (draft / "file").touch()
    assert names(target) == ["file"]
    assert names(target.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_folders_on_the_way_vanish_when_the_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "old").mkdir()
    with pytest.raises(error), new_directory(tmp_path / "old" / "a" / "b" / "out"):
        raise error
    assert names(tmp_path) == ["old"]
    assert names(tmp_path / "old") == []


def test_a_folder_on_the_way_stays_if_somebody_else_uses_it_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="told so"), new_directory(tmp_path / "a" / "b" / "out"):  # noqa: PT012  # the block is the test
        (tmp_path / "a" / "theirs").touch()
        raise ValueError("told so")
    assert names(tmp_path / "a") == ["theirs"]


def test_a_file_on_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / "file" / "out", tmp_path / "file" / "deep" / "out"):
        with pytest.raises(UnwritableOutputError, match="file is no directory; choose another place"):
            require_absent(target)
        with pytest.raises(UnwritableOutputError), new_directory(target):
            pytest.fail("the block must not run")
    # What was made before the obstacle was met does not stay.
    with pytest.raises(UnwritableOutputError, match="name too long; choose another name or place"):
        require_absent(tmp_path / "a" / ("x" * 300) / "out")
    assert names(tmp_path) == ["file"]


def test_a_target_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(OutputExistsError), new_directory(target) as draft:  # noqa: PT012  # the block is the test
        (draft / "ours").touch()
        target.mkdir()
        (target / "theirs").touch()
    assert names(target) == ["theirs"]
    assert names(tmp_path) == ["out"]


def test_a_relative_path_is_relative_to_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    require_absent(Path("out"))
    with new_directory(Path("out")) as draft:
        (draft / "file").touch()
    assert names(tmp_path / "out") == ["file"]


def test_what_is_written_has_ordinary_permissions(tmp_path: Path, umask: int) -> None:
    with new_directory(tmp_path / "out") as draft:
        (draft / "folder").mkdir()
        (draft / "folder" / "text").touch()
        # safetensors creates its files for the owner alone, whatever the umask.
        save_file({"x": torch.zeros(1)}, draft / "tensors")
    replace_file(tmp_path / "file", "content")
    out = tmp_path / "out"
    assert [mode(out), mode(out / "folder")] == [0o777 & ~umask] * 2
    assert [mode(out / "folder" / "text"), mode(out / "tensors"), mode(tmp_path / "file")] == [0o666 & ~umask] * 3


def test_the_group_of_a_shared_folder_is_inherited(tmp_path: Path) -> None:
    tmp_path.chmod(0o2775)
    with new_directory(tmp_path / "out"):
        pass
    assert mode(tmp_path / "out") & 0o2000


def test_all_is_on_disk_before_it_is_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, flushed, fsync = tmp_path / "out", set[int](), os.fsync

    def spy(descriptor: int) -> None:
        if not target.exists():
            flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    with new_directory(target) as draft:
        (draft / "folder").mkdir()
        (draft / "folder" / "file").write_text("content")
    # A directory's own entry list is lost in a power cut as easily as a file's content.
    assert {path.stat().st_ino for path in (target, target / "folder", target / "folder" / "file")} <= flushed


def test_a_file_is_created_or_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in ("first, and longer\n", "zweite Ⅱ\n", ""):
        replace_file(Path("file"), content)
        assert Path("file").read_text(encoding="utf-8") == content
        assert names(Path()) == ["file"]


def test_the_old_file_stays_when_writing_fails(tmp_path: Path) -> None:
    file = tmp_path / "file"
    replace_file(file, "old")
    with pytest.raises(UnicodeEncodeError):
        replace_file(file, "new\ud800")
    assert file.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_reader_sees_the_old_content_or_the_new(tmp_path: Path) -> None:
    file, contents = tmp_path / "file", ["a" * 100_000, "b" * 100_000]
    replace_file(file, contents[0])
    stop, seen = threading.Event(), set[str]()

    def read() -> None:
        while not stop.is_set():
            seen.add(file.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(60):
        replace_file(file, contents[number % 2])
    stop.set()
    reader.join()
    assert seen <= set(contents)


def test_drafts_of_the_dead_are_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = ["file", ".hidden", ".file.abc", ".file.0123456789abcdef.more", "file.0123456789abcdef", "folder"]
    for name in kept[:-1]:
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".file.0123456789abcdef").touch()  # somebody else's
    (tmp_path / ".file.0123456789abcdef").touch()
    (tmp_path / ".run.fedcba9876543210" / "deep").mkdir(parents=True)
    (tmp_path / ".run.fedcba9876543210" / "deep" / "file").touch()
    remove_drafts(tmp_path)
    assert sorted(names(tmp_path)) == sorted(kept)
    assert names(tmp_path / "folder") == [".file.0123456789abcdef"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_what_a_killed_process_leaves_is_a_draft(tmp_path: Path) -> None:
    if (child := os.fork()) == 0:
        with new_directory(tmp_path / "out") as draft:
            (draft / "file").write_text("half")
            os._exit(9)
    os.waitpid(child, 0)
    assert len(names(tmp_path)) == 1
    remove_drafts(tmp_path)
    assert names(tmp_path) == []


def write(path: Path, *, die: bool, ready: Event | None = None, go: Event | None = None) -> None:
    with new_directory(path) as draft:
        (draft / "file").write_text("half")
        if die:
            os.kill(os.getpid(), signal.SIGKILL)
        assert ready is not None
        assert go is not None
        ready.set()
        go.wait(60)


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and flock")
def test_the_next_to_write_removes_what_a_killed_one_left_and_nothing_of_the_living(tmp_path: Path) -> None:
    forking = multiprocessing.get_context("fork")
    for _ in range(2):
        killed = forking.Process(target=write, args=(tmp_path / "out",), kwargs={"die": True})
        killed.start()
        killed.join()
        assert len(names(tmp_path)) == 1  # the first one was removed
    left = names(tmp_path)
    ready, go = forking.Event(), forking.Event()
    living = forking.Process(target=write, args=(tmp_path / "out",), kwargs={"die": False, "ready": ready, "go": go})
    living.start()
    assert ready.wait(60)
    (at_work,) = names(tmp_path)
    assert at_work not in left
    (tmp_path / ".out.notes").touch()
    (tmp_path / ".other.0123456789abcdef").mkdir()
    require_absent(tmp_path / "out")
    remove_stale(tmp_path / "out")
    remove_drafts(tmp_path)
    assert sorted(names(tmp_path)) == sorted([at_work, ".out.notes"])
    go.set()
    living.join()
    assert living.exitcode == 0
    assert sorted(names(tmp_path)) == [".out.notes", "out"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
def test_the_draft_of_a_file_is_removed_by_the_next_to_write_it(tmp_path: Path) -> None:
    (tmp_path / ".file.0123456789abcdef").write_text("half")
    (tmp_path / ".files.0123456789abcdef").write_text("of another")
    held = (tmp_path / ".file.00112233aabbccdd").open("w")
    assert hold(tmp_path / ".file.00112233aabbccdd", held.fileno())
    replace_file(tmp_path / "file", "whole")
    assert sorted(names(tmp_path)) == [".file.00112233aabbccdd", ".files.0123456789abcdef", "file"]
    held.close()
    replace_file(tmp_path / "file", "again")
    assert sorted(names(tmp_path)) == [".files.0123456789abcdef", "file"]


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    (tmp_path / ".run.fedcba9876543210").symlink_to(tmp_path / "mine")
    (tmp_path / ".out.replaced").symlink_to(tmp_path / "mine")
    remove_drafts(tmp_path)
    remove(tmp_path / ".out.replaced")
    assert names(tmp_path) == ["mine"]
    assert names(tmp_path / "mine") == ["thesis.tex"]


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_the_refusals_are_also_what_a_stranger_would_catch() -> None:
    assert issubclass(OutputExistsError, FloristError)
    assert issubclass(OutputExistsError, FileExistsError)
    assert issubclass(MissingInputError, FileNotFoundError)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_is_not_writable_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UnwritableOutputError, match="is not writable; choose another place"):
            require_absent(tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("name", ["x" * 300, "ä" * 130])
def test_a_name_that_is_too_long_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnwritableOutputError, match="name too long; choose another name or place"):
        require_absent(tmp_path / name)
    with pytest.raises(UnwritableOutputError), new_directory(tmp_path / name):
        pytest.fail("the block must not run")
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["x" * 255, "\U0001f33c" * 63])
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path, name: str) -> None:
    require_absent(tmp_path / name)
    assert names(tmp_path) == []
    with new_directory(tmp_path / name) as draft:
        (draft / "file").touch()
    replace_file(tmp_path / name / name, "content")
    assert sorted(names(tmp_path / name)) == sorted(["file", name])


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that nobody may write to")
def test_a_folder_in_which_nothing_can_be_created_is_refused_before_any_work() -> None:
    # Its permissions do not say so to the superuser.
    with pytest.raises(UnwritableOutputError, match=r"/proc is not writable .*; choose another place"):
        require_absent(Path("/proc/out"))
