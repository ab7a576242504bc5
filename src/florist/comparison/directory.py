"""The directory of a comparison: its plan, and an ordinary run for every cell.

OUT/comparison.json               version, entries, seeds, threads, SHA-256 of the configurations
OUT/base.toml                     the common configuration, defaults included
OUT/cells/ENTRY/config.toml       the configuration of an entry
OUT/cells/ENTRY/seed-0/           a run, as `history` describes it
OUT/table.csv, table.json         a line for every entry, once all cells have ended
OUT/cells.csv                     a line for every round of every cell
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from florist.comparison.planning import Cell, Comparison, Entry
from florist.config.reading import read_config, to_toml
from florist.config.resuming import IN_ONE_PROCESS, require_resumable
from florist.config.sections import Config
from florist.errors import DamagedRunError, MissingInputError
from florist.federation.damage import DamagedFileError, checked_file
from florist.federation.history import RunDirectory
from florist.files.outputs import new_directory, remove_drafts, remove_stale
from florist.files.reading import read_bytes, sha256

_COMPARISON = TypeAdapter(Comparison)


def _config_of(entry: Entry) -> str:
    return f"cells/{entry.folder}/config.toml"


@dataclass(frozen=True, slots=True)
class ComparisonDirectory:
    """A comparison on disk; `create` or `open` it."""

    path: Path

    @classmethod
    def create(
        cls, path: Path, comparison: Comparison, base: Config, configs: Mapping[Entry, Config]
    ) -> "ComparisonDirectory":
        """Start a comparison, whole or not at all.

        Raises:
            OutputExistsError, UnwritableOutputError: as `outputs.require_absent`.
        """
        # Whole configurations, since a relative path in overrides would depend on where it is resumed.
        written = {"base.toml": to_toml(base)} | {_config_of(entry): to_toml(configs[entry]) for entry in configs}
        with new_directory(path) as draft:
            for name, content in written.items():
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                (draft / name).write_text(content, encoding="utf-8")
            hashes = {name: sha256(draft / name) for name in written}
            plan = json.dumps(asdict(replace(comparison, files=hashes)), indent=2)
            (draft / "comparison.json").write_text(plan + "\n", encoding="utf-8")
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "ComparisonDirectory":
        """Open an existing comparison.

        Raises:
            MissingInputError: there is none at `path`.
        """
        if not (path / "comparison.json").is_file():
            raise MissingInputError(f"expected the directory of a comparison at {path}, found no comparison.json in it")
        return cls(path)

    @property
    def comparison(self) -> Comparison:
        """The plan of the comparison.

        Raises:
            DamagedRunError: comparison.json cannot be read.
        """
        try:
            return _COMPARISON.validate_json(read_bytes(self.path / "comparison.json", 1 << 26))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise DamagedRunError(
                f"expected a comparison in {self.path}, and reading its comparison.json failed ({reason}); restore the "
                "file from a copy, or start the comparison anew"
            ) from error

    @property
    def base(self) -> Config:
        """The common configuration.

        Raises:
            MissingInputError, ConfigurationError: as `read_config`.
        """
        return read_config(self.path / "base.toml")

    def config(self, cell: Cell) -> Config:
        """The configuration of one run.

        Raises:
            MissingInputError, ConfigurationError: as `read_config`.
        """
        return read_config(self.path / _config_of(cell.entry), [f"federation.seed={cell.seed}"])

    def run_path(self, cell: Cell) -> Path:
        """The directory in which the run of a cell is or will be."""
        return self.path / "cells" / cell.entry.folder / f"seed-{cell.seed}"

    def begun(self, cell: Cell) -> RunDirectory | None:
        """The run of a cell; None if it has not begun."""
        path = self.run_path(cell)
        return RunDirectory.open(path) if path.exists() else None

    def is_over(self, cell: Cell) -> bool:
        """Whether the run of a cell has ended, which its adapter shows: it is written last.

        One that is not as it was written does not count; playing the cell then writes it again, and no round.

        Raises:
            DamagedRunError: state/current.json of the run cannot be read.

        Cost: the adapter is read once.
        """
        run = self.begun(cell)
        return run is not None and run.result.is_whole

    def require_whole(self) -> None:
        """Check that every run that was begun can go on, and that all runs are played with what was planned.

        Raises:
            DamagedRunError: a file of a run, or a configuration, is missing, cannot be read, or is not as it was
                written.
            ConfigurationError: the configuration of an entry was changed since, in a comparison without hashes.

        Cost: what a resumption would read of every run is read once.
        """
        comparison = self.comparison
        for name in comparison.files:
            try:
                checked_file(self.path, name, comparison.files)
            except DamagedFileError as error:
                raise DamagedRunError(
                    f"expected the comparison in {self.path} as it was begun, but {error}; its runs would not be "
                    "comparable: restore the file from a copy, or start the comparison anew"
                ) from error
        for cell in comparison.cells:
            run = self.begun(cell)
            if run is not None:
                run.require_whole()
                require_resumable(run, self.config(cell), IN_ONE_PROCESS)

    def clear_drafts(self, cell: Cell) -> None:
        """Remove what is left half written of a cell that was killed; nobody may be playing it."""
        path = self.run_path(cell)
        for folder in (path, path / "state"):
            if folder.is_dir():
                remove_drafts(folder)
        remove_stale(path)
