"""Where a new run or comparison goes."""

from pathlib import Path

from florist.files.outputs import require_absent

RUNS = Path("runs")


def run_path(out: Path | None, stem: str) -> Path:
    """The directory for a new run, which can be created: `out`, or the first free ``stem-NUMBER`` in `RUNS`.

    Raises:
        OutputExistsError, UnwritableOutputError: it cannot be created, or `RUNS` cannot; see `outputs.require_absent`.
    """
    if out is not None:
        require_absent(out)
        return out
    number = 1
    while (RUNS / f"{stem}-{number}").exists():
        number += 1
    path = RUNS / f"{stem}-{number}"
    require_absent(path if RUNS.is_dir() else RUNS)
    return path
