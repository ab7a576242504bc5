"""A run that was begun from code goes on: with the same objects, as far as one can tell."""

from collections.abc import Mapping

from florist.config.resuming import IN_ONE_PROCESS, require_resumable
from florist.config.sections import Config
from florist.errors import ConfigurationError
from florist.federation.history import RunDirectory


def require_same(run: RunDirectory, config: Config, given: Mapping[str, str]) -> None:
    """Check that a run goes on with what it was begun with.

    Args:
        run: to resume.
        config: the settings to resume it with.
        given: the objects to resume it with, in words.

    Raises:
        ConfigurationError: the run was begun from a configuration file; or settings or objects differ that may not,
            all of which are named.
    """
    before = run.facts.given
    if before is None:
        raise ConfigurationError(
            f"the run in {run.path} was begun from a configuration file; go on with: "
            f"florist simulate --resume {run.path}"
        )
    changed = [
        f"{name}: expected {_shown(before.get(name))}, got {_shown(given.get(name))}"
        for name in dict.fromkeys([*before, *given])
        if before.get(name) != given.get(name)
    ]
    if changed:
        raise ConfigurationError(
            f"{'; '.join(changed)}; the run in {run.path} goes on with what it was begun with: give the same, or begin "
            "another run with another out"
        )
    require_resumable(run, config, IN_ONE_PROCESS)


def _shown(text: str | None) -> str:
    return "none" if text is None else text
