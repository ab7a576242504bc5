"""Blocks of the size of a stack stay with the process once a command has begun its work."""

import platform
import subprocess
import sys

import pytest

MAPPED = """
import ctypes, sys
import torch
from florist.cli.memory import keep_freed_memory

class Usage(ctypes.Structure):  # glibc's struct mallinfo2
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd u f uo fo keep".split()]

usage = ctypes.CDLL(None).mallinfo2
usage.restype = Usage
if sys.argv[1] == "kept":
    keep_freed_memory()
before = usage().hblks
block = torch.empty(2**24, dtype=torch.uint8)
print(usage().hblks - before)  # blocks that are mapped from the kernel, and go back to it when they are freed
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is steered")
@pytest.mark.parametrize(("asked", "mapped"), [("kept", 0), ("by default", 1)])
def test_a_large_block_is_not_mapped_anew_each_time(asked: str, mapped: int) -> None:
    command = [sys.executable, "-c", MAPPED, asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "mallinfo2" in done.stderr:
        pytest.skip("this glibc is older than mallinfo2")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == mapped
