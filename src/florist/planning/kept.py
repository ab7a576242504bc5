"""The ranks that a rank rule keeps of a broadcast, which nobody knows before training: given, or those of a run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from florist.errors import ConfigurationError
from florist.federation.history import RunDirectory


@dataclass(frozen=True, slots=True)
class KeptRanks:
    """How many directions of each module a broadcast has, on average over the rounds.

    Attributes:
        everywhere: the rank of a module that `by_module` does not name; infinite where a rule keeps everything.
        by_module: the rank of a module, by its name.
        source: where the ranks come from, in words.
    """

    everywhere: float = math.inf
    by_module: Mapping[str, float] = field(default_factory=dict)
    source: str = "all directions of the sum (tau = 1), an upper bound"

    def of(self, module: str) -> float:
        """The rank of a module."""
        return self.by_module.get(module, self.everywhere)


def parse_kept(text: str, modules: Mapping[str, object]) -> KeptRanks:
    """Read ``9``, the rank of every module; ``total:440``, the sum over all modules; or the directory of a run.

    Args:
        text: the option.
        modules: the adapted modules, by name.

    Raises:
        ConfigurationError: it is none of these, or the run adapts other modules.
        MissingInputError, DamagedRunError, OtherVersionError: as `RunDirectory.open` and `records`.
    """
    word, _, number = text.rpartition(":")
    if number.isdecimal() and word in {"", "total"} and ":" not in word and int(number) > 0:
        if word == "total":
            if int(number) < len(modules):
                raise ConfigurationError(
                    f"--tau-rank {text}: expected a total of at least 1 for each of the {len(modules)} modules"
                )
            return KeptRanks(
                int(number) / len(modules), source=f"a total of {number} over {len(modules)} modules, shared evenly"
            )
        return KeptRanks(int(number), source=f"rank {number} in every module")
    if not text or not Path(text).is_dir():
        raise ConfigurationError(
            f"--tau-rank: expected a rank for every module as 9, one for all together as total:440, or the directory "
            f"of a run, got {text!r}"
        )
    return ranks_of_run(Path(text), modules)


def ranks_of_run(path: Path, modules: Mapping[str, object]) -> KeptRanks:
    """The mean rank of each module over the rounds of a run.

    Args:
        path: the directory of the run.
        modules: the modules that are planned.

    Raises:
        ConfigurationError: no round of the run has ranks, or they are of other modules.
        MissingInputError, DamagedRunError, OtherVersionError: as `RunDirectory.open` and `records`.
    """
    records = [record for record in RunDirectory.open(path).records() if record.ranks]
    if not records:
        raise ConfigurationError(f"--tau-rank {path}: expected a run with a round that sent factors, found none")
    named = set[str]().union(*(record.ranks for record in records))
    if named != set(modules):
        unlike = sorted(named ^ set(modules))
        raise ConfigurationError(
            f"--tau-rank {path}: expected a run that adapts the {len(modules)} modules that are planned, got "
            f"{len(named)}, and {unlike[0]} is in one alone; give its model and --target-modules"
        )
    means = {name: sum(record.ranks[name] for record in records) / len(records) for name in sorted(named)}
    total = sum(means.values())
    return KeptRanks(
        by_module=means, source=f"the ranks of {path}, {total:.0f} in all on average over {len(records)} rounds"
    )
