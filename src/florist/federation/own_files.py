"""The files of a run directory that say what the run is, each of which is known by its SHA-256.

The hashes are in ``state/current.json``. Most of these files are written once. One that is replaced while the run goes
on has two hashes for that moment, the old and the new, so that neither a process that is killed then nor one that reads
the run meanwhile takes it for damaged.

Nothing here imports torch: a run can be followed without it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from florist.errors import DamagedRunError
from florist.federation.damage import DamagedFileError, checked_file, errors_as_damage
from florist.federation.last_round import CURRENT, LastRound, document, read_last_round, write_last_round
from florist.federation.run_format import FACTS
from florist.files.outputs import replace_file
from florist.files.reading import require_regular, sha256

BEGUN = "begun.toml"
"""The configuration that a run was begun with."""
CONFIG = "config.toml"
"""The configuration that a run goes on with."""
EXAMPLES = "examples.json"
"""How many training examples of which label each client has."""

ALWAYS_READ = (BEGUN, FACTS)
"""What nothing of a run is read without."""


@dataclass(frozen=True, slots=True)
class OwnFiles:
    """The files at the top of a run directory that are known by their hashes.

    Attributes:
        run: the directory.
    """

    run: Path

    def begin(self, contents: Mapping[str, str]) -> None:
        """Write the files of a run that begins, by name, and its first ``current.json``."""
        for name, content in contents.items():
            (self.run / name).write_text(content, encoding="utf-8")
        hashes = {name: sha256(self.run / name) for name in contents}
        (self.run / CURRENT).write_text(document(LastRound(0, hashes)), encoding="utf-8")

    def __contains__(self, name: str) -> bool:
        """Whether florist wrote a file of this name.

        Raises:
            DamagedRunError: current.json cannot be read.
        """
        return name in self._last_round().own_files

    def whole(self, name: str, last: LastRound | None = None) -> Path:
        """The path of a file that was found to be as it was written, also while another process replaces it.

        Args:
            name: of the file.
            last: what current.json says, where that was read already.

        Raises:
            DamagedFileError: it is missing, cannot be read or is not as it was written.
            DamagedRunError: current.json cannot be read.

        Cost: the file is read once.
        """
        last = last if last is not None else self._last_round()
        while True:
            try:
                return self._checked(name, last)
            except DamagedFileError:
                before, last = last, self._last_round()
                if last == before:
                    raise

    def is_whole(self, name: str) -> bool:
        """Whether a file is as it was written.

        Raises:
            DamagedRunError: current.json cannot be read.
        """
        try:
            self.whole(name)
        except DamagedFileError:
            return False
        return True

    def played_config(self, last: LastRound | None = None) -> Path:
        """``config.toml``, once it was found to be what the run was played with.

        Args:
            last: as for `whole`.

        Raises:
            DamagedRunError: it is missing, cannot be read or was edited since.
        """
        try:
            return self.whole(CONFIG, last)
        except DamagedFileError as damage:
            on = (
                f", or go on with the run, which takes over what may change and names the rest: florist simulate "
                f"--resume {self.run}"
            )
            raise DamagedRunError(
                f"expected the configuration that the run in {self.run} was played with, and {damage}; "
                f"{self.way_back()}{on if (self.run / CONFIG).is_file() else ''}"
            ) from damage

    def require_config(self) -> None:
        """Check that there is a configuration to go on with, which may have been edited.

        Raises:
            DamagedRunError: there is none, or something else is in its place.
        """
        try:
            require_regular(self.run / CONFIG)
        except (OSError, ValueError) as error:
            raise DamagedRunError(
                f"expected the configuration that the run in {self.run} goes on with, and {CONFIG} cannot be read "
                f"({' '.join(str(error).split())}); nothing was changed: {self.way_back()}"
            ) from error

    @property
    def can_be_put_back(self) -> bool:
        """Whether ``begun.toml`` is whole and has what ``config.toml`` had.

        Raises:
            DamagedRunError: current.json cannot be read.
        """
        last = self._last_round()
        return self.is_whole(BEGUN) and last.own_files.get(CONFIG) == last.own_files[BEGUN]

    def way_back(self) -> str:
        """How the run gets a configuration again where ``config.toml`` is not as it was written.

        Raises:
            DamagedRunError: current.json cannot be read.
        """
        last, config, begun = self._last_round(), self.run / CONFIG, self.run / BEGUN
        if not self.is_whole(BEGUN):
            return f"restore {CONFIG} from a copy; {BEGUN}, which has what the run was begun with, is damaged too"
        there = config.exists() or config.is_symlink()
        remove = f"rm -r {config}; " if there and (config.is_symlink() or not config.is_file()) else ""
        if self.can_be_put_back:
            return f"put it back, which {BEGUN} beside it is a copy of: {remove}cp {begun} {config}"
        return (
            f"restore it from a copy, or take {BEGUN}, which the run was begun with, and say what was changed since: "
            f"{remove}cp {begun} {config}; florist simulate --resume {self.run} --set "
            f"federation.rounds={max(1, last.round)} or more"
        )

    def replace(self, name: str, content: str) -> None:
        """Write a file, in the place of one of before if there is one, and make it known.

        Raises:
            DamagedRunError: current.json cannot be read.
            UnwritableOutputError: as `outputs.replace_file`.
        """
        last, digest = self._last_round(), hashlib.sha256(content.encode()).hexdigest()
        others = {each: before for each, before in last.being_replaced.items() if each != name}
        after = replace(last, own_files={**last.own_files, name: digest}, being_replaced=others)
        if after == last and self.is_whole(name):
            return
        if name in last.own_files and self.is_whole(name):
            before = {name: sha256(self.run / name)}
            write_last_round(self.run / CURRENT, replace(after, being_replaced={**others, **before}))
        replace_file(self.run / name, content)
        write_last_round(self.run / CURRENT, after)

    def _checked(self, name: str, last: LastRound) -> Path:
        try:
            return checked_file(self.run, name, last.own_files)
        except DamagedFileError:
            if name not in last.being_replaced:
                raise
            return checked_file(self.run, name, last.being_replaced)

    def _last_round(self) -> LastRound:
        with errors_as_damage(self.run):
            return read_last_round(self.run / CURRENT)
