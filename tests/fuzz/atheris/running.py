"""What the harnesses share: they start with sound input, and coverage of florist leads them."""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path


def unlinked(file: Path) -> Path:
    """The path without the file, so that the next one is another file and none that has changed."""
    file.unlink(missing_ok=True)
    return file


def run(
    try_bytes: Callable[[bytes], None],
    seeds: Callable[[], Sequence[bytes]],
    arguments: Sequence[str],
    modules: Sequence[str],
) -> None:
    """Fuzz a function until libFuzzer's options say that it is enough; where atheris is missing, say so.

    Args:
        try_bytes: what is fed. An exception is a finding.
        seeds: gives the input to begin with. It is called when the modules are instrumented: what was imported before
            would lead nowhere.
        arguments: those of the program.
        modules: what is instrumented, with all that lies below.
    """
    try:
        import atheris
    except ImportError:
        sys.stdout.write("skipped: atheris is not installed (pip install atheris, on Linux)\n")
        return
    with atheris.instrument_imports(include=list(modules)):
        for module in modules:
            __import__(module)
    corpus = Path(tempfile.mkdtemp())
    for number, seed in enumerate(seeds()):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([*arguments, str(corpus)], try_bytes)
    atheris.Fuzz()
