"""How a run is refused of which files cannot be read, or are not those that were written."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError

from florist.errors import DamagedRunError, MissingInputError, OtherVersionError
from florist.files.reading import sha256


class DamagedFileError(ValueError):
    """One file is missing, cannot be read, or is not what was written.

    Attributes:
        name: of the file, in the directory that it is in.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} {reason}")
        self.name = name


def checked_file(folder: Path, name: str, hashes: Mapping[str, str]) -> Path:
    """Check that a file is as it was written; return its path.

    Args:
        folder: the directory that its name is in.
        name: of the file.
        hashes: the SHA-256 of what was written, by name.

    Raises:
        DamagedFileError: it is not.

    Cost: the file is read once.
    """
    if name not in hashes:
        raise DamagedFileError(name, "is not among the files that were written")
    try:
        found = sha256(folder / name)
    except FileNotFoundError:
        raise DamagedFileError(name, "is missing") from None
    except (OSError, ValueError) as error:
        raise DamagedFileError(name, f"cannot be read: {' '.join(str(error).split())}") from error
    if found != hashes[name]:
        raise DamagedFileError(
            name, f"is not as it was written: its SHA-256 is {found[:12]}..., not {hashes[name][:12]}..."
        )
    return folder / name


def result_is_damaged(run: Path, damage: str) -> str:
    """What is said of a run whose rounds are whole and whose result is not.

    Args:
        run: its directory.
        damage: what of the result is wrong, as `FinalResult.damage` says.
    """
    return (
        f"the end of the run is damaged: {damage}; it is written again from the state by florist simulate --resume "
        f"{run}, and the adapter alone, elsewhere, by florist export {run}"
    )


@contextmanager
def errors_as_damage(run: Path, still_usable: Callable[[], str] | None = None) -> Generator[None, None, None]:
    """Raise what goes wrong while files of a run are read as a `DamagedRunError`; a missing input stays one.

    Args:
        run: the directory of the run.
        still_usable: says what of the run is whole; None where nobody knows.
    """
    try:
        yield
    except (DamagedRunError, MissingInputError, OtherVersionError):
        raise
    except (OSError, ValueError, KeyError, RecursionError, SafetensorError) as error:
        raise damaged_run(run, said_by(error), still_usable() if still_usable is not None else "") from error


def said_by(error: Exception) -> str:
    """What an error says, on one line; of pydantic's, whose messages end with addresses, the first complaint."""
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]


def damaged_run(run: Path, reason: str, still_usable: str = "") -> DamagedRunError:
    """The error for the directory of a run that is not whole.

    Args:
        run: the directory.
        reason: what is wrong.
        still_usable: what of it is whole.
    """
    offered = f"{still_usable}; " if still_usable else ""
    return DamagedRunError(
        f"expected a whole run in {run}, and reading it failed ({reason}); {offered}nothing in it was changed: restore "
        "the directory from a copy, or start the run anew"
    )
