"""Which keys of ``[aggregation]`` go with which method, and which methods combine saved adapters."""

from collections.abc import Collection, Mapping
from typing import Any

from florist.config.methods import HOW_MUCH, METHODS, Method
from florist.errors import ConfigurationError


def one_shot_methods() -> list[str]:
    """The names of the methods that combine saved adapters."""
    return [method.name for method in METHODS.values() if method.not_one_shot is None]


def require_one_shot(name: str, given: Collection[str]) -> None:
    """Check that ``florist aggregate --method`` may have this name, and the options that were given with it.

    Args:
        name: the name of a method, or what was given in its place.
        given: names of keys of ``[aggregation]``.

    Raises:
        ConfigurationError: there is no such method, it cannot combine saved adapters, or it does not take an option.
    """
    known = ", ".join(one_shot_methods())
    method = METHODS.get(name)
    if method is None:
        raise ConfigurationError(f"--method {name}: expected one of {known}")
    if method.not_one_shot is not None:
        raise ConfigurationError(
            f"--method {name}: expected one of {known}; {name} is none, since {method.not_one_shot}. Choose one of "
            f"these, or run {name} in rounds with florist simulate --set aggregation.method={name}"
        )
    foreign = foreign_keys(method, given)
    if foreign:
        takes = ", ".join(map(_flag, method.keys)) or "none of these options"
        takers = [other for other in _methods_with(foreign) if other in one_shot_methods()]
        others = "".join(f", or use --method {other}" for other in takers)
        raise ConfigurationError(
            f"--method {name} takes {takes}, got {', '.join(map(_flag, foreign))}: leave that out{others}"
        )


def require_own_keys(method: Method, given: Mapping[str, object]) -> None:
    """Check that a method takes the keys of ``[aggregation]`` that are set.

    Raises:
        ConfigurationError: it does not; the message names them.
    """
    foreign = foreign_keys(method, given)
    if foreign:
        takes = " and ".join(method.keys) or "no other key"
        came = " and ".join(f"{key} = {given[key]!r}" for key in foreign)
        others = "".join(f", or choose method = {other!r}" for other in _methods_with(foreign))
        raise ConfigurationError(
            f"method = {method.name!r} takes {takes}, got {came}: remove {' and '.join(foreign)}{others}"
        )


def without_replaced(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What overrides of ``[aggregation]`` leave of the settings that they change.

    An override of the method removes the keys that the method does not take, since they were meant for another. An
    override that says how much to keep replaces what said it before. What the overrides set themselves is not checked.

    Args:
        settings: keys and values before.
        overrides: keys and values on top of them.
    """
    gone: set[str] = set()
    method = METHODS.get(str(overrides.get("method")))
    if method is not None:
        gone.update(key for other in METHODS.values() for key in foreign_keys(method, other.keys))
    if overrides.keys() & set(HOW_MUCH):
        gone.update(HOW_MUCH)
    if overrides.keys() & {"budget", "rank"}:
        gone.add("scope")  # it belongs to tau
    return {key: value for key, value in settings.items() if key not in gone}


def foreign_keys(method: Method, given: Collection[str]) -> list[str]:
    """The keys among those given that the method does not take."""
    return [key for key in given if key not in method.keys]


def _methods_with(keys: Collection[str]) -> list[str]:
    return [method.name for method in METHODS.values() if not foreign_keys(method, keys)]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
