"""How a run is refused whose files cannot be read."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from florist.errors import DamagedRunError, MissingInputError


@contextmanager
def damage_told(run: Path) -> Generator[None, None, None]:
    """What goes wrong while files of a run are read is raised as a `DamagedRunError`; a missing input stays one."""
    try:
        yield
    except (DamagedRunError, MissingInputError):
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise damaged(run, " ".join(str(error).split())) from error


def damaged(run: Path, reason: str) -> DamagedRunError:
    """The error for the directory of a run that is not whole."""
    return DamagedRunError(
        f"expected a whole run in {run}, and reading it failed ({reason}); restore the directory from a copy, or "
        "start the run anew"
    )
