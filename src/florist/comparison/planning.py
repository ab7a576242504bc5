"""The plan of a comparison: entries x seeds, each cell a run of its own, checked before anything runs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from florist.config.communication import dropped
from florist.config.methods import METHODS
from florist.config.reading import read_config
from florist.config.sections import Config
from florist.errors import ConfigurationError

_NO_FOLDER = re.compile(r"[^A-Za-z0-9.+=_]+")


@dataclass(frozen=True, slots=True)
class Entry:
    """A method or variant that is compared.

    Attributes:
        name: its name, which no other entry has and from which a folder can be named.
        overrides: ``section.key=value``, on top of the common configuration.
    """

    name: str
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return _NO_FOLDER.sub("-", self.name).strip("-.")


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a comparison."""

    entry: Entry
    seed: int

    @property
    def name(self) -> str:
        """The name of the run, for people."""
        return f"{self.entry.name}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison consists of, apart from its configurations.

    Attributes:
        florist: the version of florist that started it.
        entries: the entries, in the order of the table.
        seeds: the seeds of every entry.
        threads: the torch threads of every run, since sums in another order round differently.
        files: the SHA-256 of every configuration in its directory, by path; empty before there is one.
    """

    florist: str
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    threads: int
    files: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All runs, seed by seed, so that what is done when time is up can be compared."""
        return tuple(Cell(entry, seed) for seed in self.seeds for entry in self.entries)


def method_entry(method: str) -> Entry:
    """The entry of an aggregation method, from its name."""
    return Entry(method, (f"aggregation.method={method}",))


def configure(
    config_file: Path, overrides: Sequence[str], entries: Sequence[Entry]
) -> tuple[Config, dict[Entry, Config]]:
    """Read the common configuration and that of every entry.

    Args:
        config_file: the file of the common configuration.
        overrides: its overrides, as `read_config` takes them.
        entries: the entries of the comparison.

    Raises:
        MissingInputError: there is no such file.
        ConfigurationError: a configuration is wrong, names collide, or an entry changes what all must share: seed,
            threads, held-out examples, or what is measured on them.
    """
    base = read_config(config_file, overrides)
    _require_names(entries)
    configs: dict[Entry, Config] = {}
    for entry in entries:
        try:
            configs[entry] = read_config(config_file, overrides, entry.overrides)
        except ConfigurationError as error:
            raise ConfigurationError(f"{entry.name}: {error}") from error
        unlike = [key for key, value in _common(base).items() if _common(configs[entry])[key] != value]
        if unlike:
            raise ConfigurationError(
                f"{entry.name}: expected what all entries share to stay as it is, and it changes {', '.join(unlike)}; "
                "set it for all with --set, and seeds with --seeds"
            )
    return base, configs


def without_feedback(base: Config, configs: Mapping[Entry, Config]) -> dict[str, list[str]]:
    """The entries whose method cannot use what the common configuration says of feedback and cuts, by those keys.

    Their clients train on from what they are sent, so that nothing can be sent later: the codec alone stays.
    """
    found: dict[str, list[str]] = {}
    for entry, config in configs.items():
        keys = dropped(base.communication, config.communication)
        if keys and not METHODS[config.aggregation.method].adds_exact_sum:
            found.setdefault(" and ".join(f"communication.{key}" for key in keys), []).append(entry.name)
    return found


def seeds_from(text: str, first: int) -> tuple[int, ...]:
    """Read seeds: ``3`` is so many from the configuration's on, ``0,5,7`` is a list.

    Args:
        text: how many seeds, or which.
        first: the seed of the configuration.

    Raises:
        ConfigurationError: the text is neither, or a seed comes twice.
    """
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = ()
    if "," not in text:
        numbers = tuple(range(first, first + numbers[0])) if numbers else ()
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise ConfigurationError(
            f"expected --seeds as how many, as 3, or as unlike numbers from 0 on, as 0,5,7; got {text!r}"
        )
    return numbers


def _common(config: Config) -> Mapping[str, Any]:
    """The settings that make runs comparable, by the names of their keys."""
    data = ("path", "test", "test_fraction", "validation", "validation_fraction")
    return {
        "federation.seed": config.federation.seed,
        "training.threads": config.training.threads,
        **{f"data.{key}": getattr(config.data, key) for key in data},
        **{f"task.{key}": value for key, value in config.task},
        **{f"evaluation.{key}": value for key, value in config.evaluation},
    }


def _require_names(entries: Sequence[Entry]) -> None:
    # Some file systems take "A" and "a" for one name.
    taken: dict[str, str] = {}
    for entry in entries:
        folder = entry.folder.lower()
        if not folder:
            raise ConfigurationError(f"expected a name with letters or digits for an entry, got {entry.name!r}")
        if folder in taken:
            raise ConfigurationError(
                f"expected entries of unlike names, got {taken[folder]!r} and {entry.name!r}; rename one"
            )
        taken[folder] = entry.name
    if not entries:
        raise ConfigurationError("expected methods or variants to compare, got none")
