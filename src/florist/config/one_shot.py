"""What the methods take where saved adapters are combined once; light enough to be asked before torch is loaded."""

from collections.abc import Collection, Mapping

from florist.errors import ConfigurationError

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "florist": ("tau", "scope", "budget", "rank", "max_rank"),
    "flexlora": ("max_rank",),
    "fedit": (),
    "flora": (),
    "fedex": (),
}
"""Method -> the keys of ``[aggregation]`` that mean something to it."""

_UNSUITED: Mapping[str, str] = {
    "ffa": "it averages B over one A that nobody has trained, and saved adapters have trained theirs",
    "full": "it averages whole weights, and saved adapters hold factors",
}


def require_one_shot(method: str, given: Collection[str]) -> None:
    """Check that a method combines saved adapters and takes what was given for it.

    Args:
        method: its name in ``[aggregation]``.
        given: names of keys of that section.

    Raises:
        ConfigurationError: it does not.
    """
    if method in _UNSUITED:
        raise ConfigurationError(
            f"--method {method}: expected one of {', '.join(OPTIONS)}: {_UNSUITED[method]}. Choose one of these, or "
            f"run {method} in rounds with florist simulate --set aggregation.method={method}"
        )
    foreign = [name for name in given if name not in OPTIONS[method]]
    if foreign:
        takes = ", ".join(map(_flag, OPTIONS[method])) or "none of florist's options"
        raise ConfigurationError(
            f"--method {method} takes {takes}, got {', '.join(map(_flag, foreign))}: leave that out, or use "
            "--method florist"
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
