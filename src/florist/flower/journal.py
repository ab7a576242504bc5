"""Where a server keeps its rounds: the run directory of the in-process engine, and what its clients agreed on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from florist.errors import ConfigurationError, DamagedRunError
from florist.federation.history import RunDirectory, RunFacts
from florist.federation.records import RoundRecord
from florist.federation.state import ServerState
from florist.files import strict_json
from florist.files.outputs import replace_file
from florist.flower.agreement import Agreement

AGREED = "federation.json"


_AGREED = TypeAdapter(Agreement)


@dataclass(frozen=True, slots=True)
class Journal:
    """The directory of a run over Flower; `history` says what is in it.

    Attributes:
        path: of the directory, created with the first round's beginning and resumed from where it exists.
        method: name of the aggregation method, for the record.
        config_toml: the configuration behind the run, where there is one.
    """

    path: Path
    method: str
    config_toml: str = ""

    @property
    def directory(self) -> RunDirectory:
        """The directory.

        Raises:
            MissingInputError: it was not begun.
        """
        return RunDirectory.open(self.path)

    @property
    def begun(self) -> bool:
        """Whether there is a run to resume."""
        return (self.path / "run.json").exists()

    def begin(self, initial: Callable[[], Mapping[str, float]]) -> None:
        """Create the directory, unless it is there.

        Args:
            initial: metrics before the first round; not measured again where a run is resumed.

        Raises:
            OutputExistsError, MissingInputError: the path is taken by something else, or its parent is missing.
        """
        if not self.begun:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            facts = RunFacts(version("florist"), self.method, torch.get_num_threads(), initial())
            RunDirectory.create(self.path, self.config_toml, facts)

    @property
    def agreed(self) -> Agreement | None:
        """What the clients of this run agreed on; None where nothing was saved yet.

        Raises:
            DamagedRunError: the file cannot be read.
        """
        file = self.path / AGREED
        if not file.exists():
            return None
        try:
            return _AGREED.validate_python(strict_json.decode(file.read_bytes()))
        except (OSError, ValueError, ValidationError) as error:
            raise DamagedRunError(
                f"expected what clients agreed on in {file}, and reading it failed: {error}"
            ) from error

    def agree(self, agreed: Agreement) -> None:
        """Save what the clients agreed on."""
        replace_file(
            self.path / AGREED,
            strict_json.encode({"base": agreed.base, "shapes": dict(agreed.shapes)}, indent=1) + "\n",
        )

    def load(self, initial: ServerState) -> tuple[ServerState, list[RoundRecord]]:
        """State and records after the last whole round; see `RunDirectory.load`.

        Raises:
            ConfigurationError: the run is one of another method.
            DamagedRunError: a file is missing or cannot be read.
        """
        begun_with = self.directory.facts.method
        if begun_with != self.method:
            raise ConfigurationError(
                f"expected the method {begun_with!r}, which the run in {self.path} was begun with, "
                f"got {self.method!r}; go on with that, or begin another run"
            )
        return self.directory.load(initial)

    def save(self, state: ServerState, record: RoundRecord) -> None:
        """Make a closed round permanent."""
        self.directory.save(state, record)

    def amend(self, state: ServerState, record: RoundRecord) -> None:
        """Replace the record of the last round, and who holds what: what was measured after it was saved."""
        self.directory.amend(state, record)
