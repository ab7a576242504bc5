"""How long `florist report` takes for a large run, and how large its page is.

    python benchmarks/report.py [--modules 200] [--rounds 75] [--clients 100] [--features 2048] [--rank 64]

The run is made up: records of every round with the norm of every client's update, the cosines between 32 clients, and a
final adapter of the given shapes. It prints the seconds for reading and decomposing, for the page, and the bytes.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.reporting.made import a_run

from florist.reporting.page import html, library
from florist.reporting.writing import page_of


def main() -> None:
    """Make a run, time its page, and print what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in {"modules": 200, "rounds": 75, "clients": 100, "features": 2048, "rank": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    sizes = vars(parser.parse_args())
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {version('torch')} with {torch.get_num_threads()} threads"
    )
    print(", ".join(f"{value} {name}" for name, value in sizes.items()))
    with tempfile.TemporaryDirectory() as folder:
        a_run(Path(folder) / "run", **sizes)
        began = time.perf_counter()
        page = page_of(Path(folder) / "run")
        read = time.perf_counter()
        library()
        bundled = time.perf_counter()
        text = html(page)
        ended = time.perf_counter()
    print(f"reading, decomposing and figures: {read - began:.2f} s")
    print(f"bundling the JavaScript, once a process: {bundled - read:.2f} s")
    print(f"writing the page: {ended - bundled:.2f} s")
    print(f"all: {ended - began:.2f} s, {len(page.figures)} figures, {len(text.encode()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
