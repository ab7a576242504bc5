"""What of a configuration may change where a run is resumed, and what makes its result and has to stay."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from florist.config.reading import read_config, to_toml
from florist.config.sections import Config
from florist.errors import ConfigurationError
from florist.federation.history import RunDirectory
from florist.federation.own_files import CONFIG
from florist.files.locking import sole_process

IN_ONE_PROCESS = (
    "federation.rounds",
    "federation.early_stopping",
    "federation.min_delta",
    "evaluation.*",
    "communication.flush",
    "tracking.*",
)
"""Keys that may change where the run of a simulation goes on."""
OVER_FLOWER = (*IN_ONE_PROCESS, "flower.*", "data.path", "model.name_or_path")
"""Keys that may change over Flower. The paths say where things are on the server's machine; whether clients train on
the base of before is checked by its fingerprint."""


def require_from_configuration(run: RunDirectory) -> None:
    """Check that a configuration file says all that a run needs to go on.

    Raises:
        ConfigurationError: the run was begun from code.
    """
    if run.facts.given is not None:
        raise ConfigurationError(
            f"the run in {run.path} was begun from code, with objects that no file has; go on in Python with the same "
            f"arguments: florist.simulate(..., out={str(run.path)!r}, resume=True)"
        )


def config_to_resume(run: RunDirectory, overrides: Sequence[str] = ()) -> Config:
    """The configuration that a run in one process goes on with, once the run was found whole.

    Args:
        run: to resume.
        overrides: changes of it.

    Raises:
        DamagedRunError: a file of the run is missing, cannot be read or is not as it was written.
        OutputExistsError: something is in the place of the final adapter that florist did not write there.
        ConfigurationError: the run was begun from code, or something was changed that may not change.
    """
    run.require_whole()
    require_from_configuration(run)
    try:
        config = read_config(run.config_file, overrides)
    except ConfigurationError as error:
        if run.own_files.is_whole(CONFIG):
            raise  # what is wrong is an override
        raise ConfigurationError(f"{error}; the file was edited: {run.own_files.way_back()}") from error
    require_resumable(run, config, IN_ONE_PROCESS)
    return config


def changes(run: RunDirectory, config: Config) -> list[str]:
    """What differs between the configuration that a run goes on with and the one that it was begun with, in words.

    Raises:
        MissingInputError: the run does not have the configuration that it was begun with.
    """
    before, now = dict(_settings(read_config(run.begun_file))), dict(_settings(config))
    return [
        f"{name} = {_shown(now[name])} (begun with {_shown(was)})" for name, was in before.items() if now[name] != was
    ]


def require_resumable(run: RunDirectory, config: Config, may_change: Collection[str]) -> None:
    """Check that a run is resumed with the settings that it was begun with, except for those that may change.

    Args:
        run: to resume.
        config: to resume it with.
        may_change: keys as ``section.key``, or ``section.*`` for all of a section.

    Raises:
        ConfigurationError: other keys were changed, all of which are named; or more rounds were played than are asked
            for.
        MissingInputError: the run does not have the configuration that it was begun with.
    """
    before, now = dict(_settings(read_config(run.begun_file))), dict(_settings(config))
    changed = [
        f"{name} = {_shown(now[name])}: expected {_shown(was)}"
        for name, was in before.items()
        if now[name] != was and not {name, f"{name.partition('.')[0]}.*"} & set(may_change)
    ]
    if changed:
        raise ConfigurationError(
            f"{'; '.join(changed)}, which the run in {run.path} was begun with; a run that goes on may change "
            f"{', '.join(may_change)} and nothing else: leave the rest as it was, or begin another run"
        )
    played = len(run.records())
    if config.federation.rounds < played:
        raise ConfigurationError(
            f"federation.rounds = {config.federation.rounds}: expected at least {played}, which the run in {run.path} "
            "has played; begin another run for fewer"
        )


def _settings(config: Config) -> Iterator[tuple[str, Any]]:
    for section, values in config.model_dump().items():
        for key, value in values.items():
            yield f"{section}.{key}", value


def _shown(value: object) -> str:
    return "none" if value is None else repr(value)


def adopt(run: RunDirectory, config: Config, header: str = "") -> None:
    """Write down the configuration that a run goes on with, which may differ in what may change.

    What was written at the end of the run stays where the settings that it follows from stay. A remark in the file is
    no setting, and is not kept.

    Args:
        run: the run.
        config: the configuration.
        header: what its file begins with.

    Raises:
        DirectoryInUseError: another process plays the run.
    """
    with sole_process(run.path):
        # What was written at the end may have what the next one lacks, or lack it.
        known = run.own_files.is_whole(CONFIG)
        before = read_config(run.config_file).communication.flush if known else run.result.flushed
        if config.communication.flush != before:
            run.result.set_aside(len(run.records()))
        run.save_config(header + to_toml(config))
