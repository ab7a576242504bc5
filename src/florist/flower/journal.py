"""Where a server keeps its rounds: the run directory of the in-process engine, and what its clients agreed on."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import TypeAdapter

from florist.errors import ConfigurationError, DamagedRunError
from florist.federation.environment import environment
from florist.federation.history import RunDirectory
from florist.federation.kept_rounds import KeepRounds
from florist.federation.records import RoundRecord
from florist.federation.rules import Federation
from florist.federation.run_facts import RunFacts
from florist.federation.state import ServerState
from florist.files import strict_json
from florist.files.reading import read_bytes
from florist.flower.agreement import Agreement

AGREED, WORDS_FOLLOW = "federation.json", "masked.json"
_MOST_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class _Agreed:
    """What ``federation.json`` says: an `Agreement`, and the settings of the rules that the run was begun with."""

    base: str
    shapes: Mapping[str, tuple[int, int]]
    settings: Mapping[str, str]


_AGREED = TypeAdapter(_Agreed)
_FOLLOWED = TypeAdapter(dict[str, int])
_SETTINGS = (
    "aggregator",
    "seed",
    "local_init",
    "shared_init",
    "fraction",
    "min_replies",
    "communication",
    "guard",
    "robust",
)
"""Fields of `Federation` that make the result of a run."""


@dataclass(frozen=True, slots=True)
class Journal:
    """The directory of a run over Flower; `history` says what is in it.

    Attributes:
        path: the directory, which is created as the first round begins, and resumed from where it exists.
        method: the name of the aggregation method, for the record.
        config_toml: the configuration behind the run; empty where there is none.
        keep_rounds: what stays on disk of the rounds before the last, for a run that begins.
    """

    path: Path
    method: str
    config_toml: str = ""
    keep_rounds: KeepRounds = KeepRounds.LAST

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
        """Create the directory, or write down the configuration that a run goes on with.

        Args:
            initial: measures before the first round; it is not called where a run is resumed.

        Raises:
            OutputExistsError, MissingInputError: the path is taken by something else, or its parent is missing.
        """
        if not self.begun:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            facts = RunFacts(
                version("florist"),
                self.method,
                torch.get_num_threads(),
                initial(),
                keep_rounds=self.keep_rounds,
                environment=environment(),
            )
            RunDirectory.create(self.path, self.config_toml, facts)
        elif self.config_toml:
            self.directory.save_config(self.config_toml)

    @property
    def agreed(self) -> Agreement | None:
        """What the clients of this run agreed on; None where nothing was saved yet.

        Raises:
            DamagedRunError: the file is missing or is not as it was written.
        """
        saved = self._agreed()
        return Agreement(saved.base, saved.shapes) if saved is not None else None

    def agree(self, agreed: Agreement, rules: Federation, private: str | None = None) -> None:
        """Save what the clients agreed on, and the rules of the run.

        Args:
            agreed: what they agreed on.
            rules: the rules.
            private: how updates are protected, in words; None where they are not.
        """
        document = {"base": agreed.base, "shapes": dict(agreed.shapes), "settings": _settings(rules, private)}
        self.directory.own_files.replace(AGREED, strict_json.encode(document, indent=1) + "\n")

    def words_follow(self, round_number: int) -> None:
        """Note that masked words are asked for in a round, before they are: it is not begun anew after that."""
        self.directory.own_files.replace(WORDS_FOLLOW, strict_json.encode({"round": round_number}) + "\n")

    @property
    def words_followed(self) -> int:
        """The last round in which masked words were asked for; 0 for none.

        Raises:
            DamagedRunError: the file cannot be read.
        """
        if not self.begun or WORDS_FOLLOW not in self.directory.own_files:
            return 0
        try:
            file = self.directory.own_files.whole(WORDS_FOLLOW)
            return _FOLLOWED.validate_json(read_bytes(file, _MOST_BYTES))["round"]
        except (OSError, ValueError) as error:
            raise DamagedRunError(
                f"expected the round in which masked words were asked for in {self.path / WORDS_FOLLOW}, and "
                f"{' '.join(str(error).split())}; restore it from a copy, or begin another run"
            ) from error

    def load(
        self, initial: ServerState, rules: Federation | None = None, private: str | None = None
    ) -> tuple[ServerState, list[RoundRecord]]:
        """State and records after the last whole round; see `RunDirectory.load`.

        Args:
            initial: the state before the first round.
            rules: what the run is to go on with; None to look at it alone.
            private: how updates are protected, as in `agree`.

        Raises:
            ConfigurationError: the run was begun with another method or other rules, all of which are named.
            DamagedRunError: a file is missing or cannot be read.
        """
        begun_with = self.directory.facts.method
        if begun_with != self.method:
            raise ConfigurationError(
                f"expected the method {begun_with!r}, which the run in {self.path} was begun with, "
                f"got {self.method!r}; go on with that, or begin another run"
            )
        if rules is not None:
            self.directory.require_whole()
            self._require_same(rules, private)
        return self.directory.load(initial)

    def _agreed(self) -> _Agreed | None:
        if not self.begun or (AGREED not in self.directory.own_files and not self.directory.records()):
            return None
        try:
            return _AGREED.validate_json(read_bytes(self.directory.own_files.whole(AGREED), _MOST_BYTES))
        except (OSError, ValueError) as error:
            raise DamagedRunError(
                f"expected what the clients of the run in {self.path} agreed on in {self.path / AGREED}, and "
                f"{' '.join(str(error).split())}; restore it from a copy, or begin another run"
            ) from error

    def _require_same(self, rules: Federation, private: str | None) -> None:
        saved, now = self._agreed(), _settings(rules, private)
        before = saved.settings if saved is not None else now  # else it was stopped before round 1
        changed = [
            f"{name} = {now[name]}: expected {before.get(name)}" for name in now if now[name] != before.get(name)
        ]
        if changed:
            raise ConfigurationError(
                f"{'; '.join(changed)}, which the run in {self.path} was begun with; go on with that, or begin another "
                "run"
            )

    def save(self, state: ServerState, record: RoundRecord) -> None:
        """Make a closed round permanent."""
        self.directory.save(state, record)

    def amend(self, state: ServerState, record: RoundRecord) -> None:
        """Replace the record of the last round, and who holds what: what was measured after it was saved."""
        self.directory.amend(state, record)


def _settings(rules: Federation, private: str | None) -> Mapping[str, str]:
    # What does not say how it is shown is shown with its address, which is another one in every process.
    said = {name: re.sub(r" at 0x[0-9a-f]+", "", repr(getattr(rules, name))) for name in _SETTINGS}
    return {**said, "private": repr(private)}
