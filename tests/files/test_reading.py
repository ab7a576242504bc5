import hashlib
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from florist.errors import FloristError, UnreadableFileError
from florist.files.reading import open_regular, read_bytes, require_regular, sha256

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no FIFOs")


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for content in (b"", b"a", bytes(range(256)) * 10_000):
        file.write_bytes(content)
        assert read_bytes(file, len(content)) == content
        assert require_regular(file) == len(content)
        assert sha256(file) == hashlib.sha256(content).hexdigest()
    with pytest.raises(UnreadableFileError, match=r"expected at most 2559999 bytes in .*file, found 2560000; "):
        read_bytes(file, len(content) - 1)


def test_a_file_is_found_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert read_bytes(tmp_path / "link", 3) == b"abc"


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (Path.mkdir, "a directory"),
        (os.mkfifo, "a FIFO"),
        (make_socket, "a socket"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
        (lambda path: path.symlink_to("/dev/tty"), "a device"),
    ],
)
@pytest.mark.parametrize(
    "read", [lambda path: read_bytes(path, 10), sha256, require_regular, lambda path: open_regular(path).__enter__()]
)
def test_what_is_no_file_is_refused_at_once(
    make: Callable[[Path], object], kind: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    make(tmp_path / "it")
    with pytest.raises(UnreadableFileError, match=rf"expected a regular file at .*it, found {kind}; put"):
        read(tmp_path / "it")


def test_a_link_that_leads_nowhere_or_to_itself_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "dangles").symlink_to("nothing")
    (tmp_path / "circle").symlink_to("circle")
    for name in ("none", "dangles", "circle"):
        with pytest.raises(OSError) as error:  # noqa: PT011  # the message is the system's
            read_bytes(tmp_path / name, 10)
        assert not isinstance(error.value, FloristError)


def test_a_file_that_tells_no_size_is_bounded_too() -> None:
    endless = Path("/proc/self/maps")
    if not endless.exists():
        pytest.skip("needs /proc")
    with pytest.raises(UnreadableFileError, match="found more"):
        read_bytes(endless, 10)
    assert read_bytes(endless, 1 << 24)


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"abc")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0  # noqa: PTH112, PTH208
    for _ in range(20):
        read_bytes(tmp_path / "file", 3)
        for name, most in (("fifo", 3), ("file", 2)):
            with pytest.raises(UnreadableFileError):
                read_bytes(tmp_path / name, most)
    after = len(os.listdir("/proc/self/fd")) if before else 0  # noqa: PTH208
    assert after == before
