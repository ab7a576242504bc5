"""Whether the libraries are there that draw a report."""

from importlib.util import find_spec

from florist.errors import MissingDependencyError, how_to_install

_NEEDED = {"altair": "Vega-Altair", "vl_convert": "vl-convert", "jinja2": "Jinja"}
INSTALL = how_to_install("report")


def missing_library() -> str | None:
    """The name of a library that a report needs and that is not installed; None where all are."""
    return next((name for module, name in _NEEDED.items() if find_spec(module) is None), None)


def require_reporting_libraries() -> None:
    """Refuse to go on without what a report needs.

    Raises:
        MissingDependencyError: a library is not installed.
    """
    missing = missing_library()
    if missing is not None:
        raise MissingDependencyError(f"florist report draws with {missing}, which is not installed: {INSTALL}")
