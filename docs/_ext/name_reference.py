"""The public names as directives of autodoc: all that the packages of florist list in ``__all__``.

A name that has no docstring is refused, so that the site cannot be built without one.
"""

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGES = (
    "florist.peft",
    "florist.simulating",
    "florist.one_shot",
    "florist.config",
    "florist.flower",
    "florist.aggregation",
    "florist.aggregation.robust",
    "florist.ranks",
    "florist.evaluation",
    "florist.checkpoint",
    "florist.linalg",
)
"""The packages that list their names, beside florist itself."""

MODULES = (
    "florist.checkpoint.model_weights",
    "florist.rounds",
    "florist.factors",
    "florist.errors",
    "florist.federation.guard",
    "florist.federation.last_round",
    "florist.federation.local_init",
    "florist.federation.observer",
    "florist.federation.records",
    "florist.federation.run_facts",
    "florist.federation.state",
    "florist.flower.messages",
    "florist.flower.private_messages",
    "florist.flower.private_terms",
    "florist.flower.upload_terms",
    "florist.linalg.spectrum",
    "florist.linalg.accumulate",
    "florist.models.federated_model",
    "florist.models.local_training",
    "florist.models.training",
    "florist.one_shot.tuning",
    "florist.planning.plan",
    "florist.planning.population",
    "florist.planning.sources",
    "florist.privacy.accounting",
    "florist.tracking.tracker",
)
"""The modules that the pages name beside them, all of whose public names are shown."""


def name_reference() -> str:
    """The names of florist itself.

    Raises:
        ValueError: a public name has no docstring.
    """
    return "\n".join(_section("florist", set()))


def package_reference() -> str:
    """A section for every package and module, with a directive for every name that no section before it has.

    Raises:
        ValueError: a public name has no docstring.
    """
    florist = import_module("florist")
    seen = {id(getattr(florist, name)) for name in public_names(florist)}
    return "\n".join("\n".join(_section(module, seen)) for module in (*PACKAGES, *MODULES))


def _section(module: str, seen: set[int]) -> Iterator[str]:
    loaded = import_module(module)
    yield f"## `{module}`"
    yield ""
    yield from ["```{eval-rst}", inspect.cleandoc(loaded.__doc__ or "").replace("::\n", ":\n"), ""]
    for name in public_names(loaded):
        if missing := undocumented(loaded, name):
            raise ValueError(f"{module}.{name}: {missing}")
        thing = getattr(loaded, name)
        known = id(thing) in seen
        seen.add(id(thing))
        if not known:
            yield from _directive(loaded, name, thing)
    yield from ["```", ""]


def _directive(module: ModuleType, name: str, thing: Any) -> Iterator[str]:
    if inspect.isclass(thing):
        yield from [f".. autoclass:: {module.__name__}.{name}", "   :members:", ""]
    elif callable(thing) and hasattr(thing, "__module__") and not hasattr(thing, "__origin__"):
        yield from [f".. autofunction:: {module.__name__}.{name}", ""]
    else:
        yield from [f".. autodata:: {home_of(module, name)}.{name}", "   :no-value:", ""]


def public_names(module: ModuleType) -> list[str]:
    """What a module lists in ``__all__``, or the public functions, classes and documented values that it defines."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return sorted(listed)
    return [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(thing) or inspect.isfunction(thing))
        and thing.__module__ == module.__name__
    ]


def undocumented(module: ModuleType, name: str) -> str:
    """What is wrong with the docstring of a name; the empty text where it has one."""
    thing = getattr(module, name)
    own = thing.__doc__ if inspect.isclass(thing) or inspect.isroutine(thing) else value_docstring(module, name)
    return "" if own else "expected a docstring of a public name, got none; say what it is"


def value_docstring(module: ModuleType, name: str) -> str:
    """The text below the assignment of a name that is no class and no function."""
    body = _tree(home_of(module, name)).body
    for assignment, below in pairwise(body):
        targets = assignment.targets if isinstance(assignment, ast.Assign) else [getattr(assignment, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return str(below.value.value) if isinstance(below, ast.Expr) and _is_text(below.value) else ""
    return ""


def home_of(module: ModuleType, name: str) -> str:
    """The module that a name of a package is imported from; the module itself where it is defined there."""
    for node in ast.walk(_tree(module.__name__)):
        if isinstance(node, ast.ImportFrom) and node.module and any(each.name == name for each in node.names):
            return home_of(import_module(node.module), name)
    return module.__name__


def _tree(module: str) -> ast.Module:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"expected a module with a source, got {module}")
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
