"""Reading a TOML file and ``--set`` overrides into a configuration, or into one message that lists all mistakes."""

import datetime
import difflib
import re
import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from florist.config import communication, method_keys
from florist.config.paths import anchor, wrong_paths
from florist.config.sections import Config, Section
from florist.config.toml_text import parsed, read_tables, wrong_values
from florist.errors import ConfigurationError, printable

SectionType = TypeVar("SectionType", bound=Section)

DEMONSTRATION = Path(__file__).parents[1] / "demonstration.toml"
"""The configuration that ships with florist, with its model and its data."""

_MOST_PROBLEMS = 12
"""How many of the mistakes in a configuration are told; of the others, how many there are."""

_EXPECTED = {
    "greater_than": "a number greater than {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number less than {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "finite_number": "a finite number",
    "byte_size": "a size as 20MB or 300KB",
    "byte_size_unit": "a size as 20MB or 300KB",
}
"""What was expected where pydantic finds an error of these types, with fields from the context of the error."""

_LONGEST_QUOTE = 100
"""The characters that are quoted of an override."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200


@dataclass(frozen=True, slots=True)
class _Problem:
    """A mistake in a configuration.

    Attributes:
        name: The section or ``section.key`` that is wrong; empty where the whole configuration is.
        text: What is wrong, with the name.
    """

    name: str
    text: str


def read_config(
    path: Path, *layers: Sequence[str], option: str = "--set", unused: Mapping[str, Mapping[str, Any]] | None = None
) -> Config:
    """Read a TOML file and apply overrides.

    A relative path in the file is relative to the file, and one in an override to the current directory; what is read
    has absolute paths. An override of the aggregation method, of how much it keeps, or of a preset, also removes what
    the file or an earlier layer says to the contrary (`without_replaced` of `method_keys` and of `communication`).

    Args:
        path: The path of the file.
        layers: Overrides, each a text ``section.key=value`` whose value is TOML or else a plain string; without a value
            (``section.key=``) the key goes back to its default. A later layer changes what the earlier ones make of
            the file.
        option: What an error puts before an override of the first layer that brought a mistake. A mistake of a later
            layer is told with the override alone.
        unused: Sections that the caller does not use, each with what stands for it where the file lacks it.

    Raises:
        MissingInputError: There is no such file.
        ConfigurationError: The file is not TOML, or some of its keys are unknown or wrong or contradict each other.
    """
    tables = read_tables(path)
    anchor(tables, path.parent)
    in_file, brought = set(tables), dict[str, str]()
    for number, overrides in enumerate(layers):
        for name, override in _apply(tables, overrides).items():
            brought[name] = f"{option} {override}".strip() if number == 0 else override
    for section, values in (unused or {}).items():
        tables.setdefault(section, dict(values))
    config, problems = _checked(tables)
    if config is None:
        raise ConfigurationError(_told_by_source(problems, path, in_file, brought))
    return config


def config_of(tables: Mapping[str, Mapping[str, Any]]) -> Config:
    """The configuration of some tables, which no file holds; a relative path is relative to the current directory.

    Raises:
        ConfigurationError: Some keys are unknown or wrong or contradict each other.
    """
    own = {name: dict(table) for name, table in tables.items()}
    anchor(own, Path.cwd())
    config, problems = _checked(own)
    if config is None:
        raise ConfigurationError("; ".join(problem.text for problem in problems))
    return config


def _checked(tables: dict[str, Any]) -> tuple[Config | None, list[_Problem]]:
    wrong = list(wrong_values(tables)) or list(wrong_paths(tables))
    if wrong:  # nothing else looks at such values: they break whoever does
        return None, [_Problem(name, f"{name}: {text}") for name, text in wrong]
    # Unknown keys are taken out first, because a section that has some is not searched for contradictions.
    problems = list(_drop_unknown(tables))
    try:
        config = Config.model_validate(tables)
    except ValidationError as error:
        return None, [*problems, *_explain(error)]
    return (None if problems else config), problems


def validated(
    section: type[SectionType], values: Mapping[str, Any], options: Mapping[str, str] | None = None
) -> SectionType:
    """Return one section made from the options of a command.

    Args:
        section: The section.
        values: Its keys.
        options: The options that the keys come from, which the message names, where they are not called like the keys.

    Raises:
        ConfigurationError: Some options are wrong or contradict each other.
    """
    names = {key: f"--{key.replace('_', '-')}" for key in section.model_fields} | dict(options or {})
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError("; ".join(_told_by_option(problem, names) for problem in _explain(error))) from error


def _told_by_option(problem: _Problem, options: Mapping[str, str]) -> str:
    """What is wrong, in the words of the command line: ``--tau: ...``, or ``--tau 0.9 and --rank 2 contradict``."""
    if problem.name:
        return problem.text.replace(problem.name, options.get(problem.name, problem.name), 1)
    keys = "|".join(sorted(options, key=len, reverse=True))
    return re.sub(rf"\b({keys})\b(?: =)?", lambda found: options[found[1]], problem.text)


def to_toml(config: Config) -> str:
    """Return the whole configuration, defaults included, as TOML that `read_config` reads back."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _apply(tables: dict[str, Any], overrides: Sequence[str]) -> dict[str, str]:
    """Change tables by overrides, and return the override that counts for each key that they have."""
    given: dict[str, Any] = {}
    texts: dict[str, str] = {}
    unset: set[tuple[str, str]] = set()
    for override in overrides:
        name, separator, text = override.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (separator and dot and section and key):
            raise ConfigurationError(f"expected --set section.key=value, got '{printable(override, _LONGEST_QUOTE)}'")
        texts[f"{section}.{key}"] = printable(override.strip(), _LONGEST_QUOTE)
        unset.discard((section, key))
        if not text.strip() and key in _keys(_section_type(section)):
            given.get(section, {}).pop(key, None)
            unset.add((section, key))
            continue
        value = _value(text)
        if isinstance(value, datetime.date | datetime.time):
            value = text  # no key takes a date or a time, and data.rows=10:50:10 only looks like one
        given.setdefault(section, {})[key] = value
    anchor(given, Path.cwd())
    if isinstance(before := tables.get("communication"), dict):
        method = given.get("aggregation", {}).get("method")
        changes = given.get("communication", {})
        tables["communication"] = communication.without_replaced(before, changes, method)
    for section, table in given.items():
        if not isinstance(tables.setdefault(section, {}), dict):
            raise ConfigurationError(f"expected a table [{section}], got {_short(tables[section])}")
        if section == "aggregation":
            tables[section] = method_keys.without_replaced(tables[section], table)
        tables[section].update(table)
    for section, key in unset:
        if isinstance(table := tables.get(section), dict):
            table.pop(key, None)
    return texts


def _told_by_source(
    problems: Sequence[_Problem], path: Path, in_file: Collection[str], brought: Mapping[str, str]
) -> str:
    """Return the first problems as one line, each after the file or the overrides that it comes from."""
    by_source: dict[str, list[str]] = {}
    for problem in problems[:_MOST_PROBLEMS]:
        by_source.setdefault(_source(problem.name, path, in_file, brought), []).append(problem.text)
    more = f"; and {len(problems) - _MOST_PROBLEMS} more" if len(problems) > _MOST_PROBLEMS else ""
    return "; ".join(f"{source}: {'; '.join(texts)}" for source, texts in by_source.items()) + more


def _source(name: str, path: Path, in_file: Collection[str], brought: Mapping[str, str]) -> str:
    section, _, key = name.partition(".")
    if key:
        return brought.get(name, str(path))
    # A problem of a section, or of the whole configuration, may come from the file and the overrides together.
    overrides = ", ".join(text for other, text in brought.items() if section in {"", other.partition(".")[0]})
    if not overrides:
        return str(path)
    return overrides if section and section not in in_file else f"{path} with {overrides}"


def _drop_unknown(tables: dict[str, Any]) -> Iterator[_Problem]:
    for section, field in Config.model_fields.items():
        table = tables.get(section)
        if not isinstance(table, dict):
            continue
        for key in sorted(table.keys() - _keys(field.annotation)):
            name = f"{section}.{key}"
            yield _Problem(name, f"unknown key {name}{_nearest([section, key], table.pop(key))}")
    for section in sorted(tables.keys() - Config.model_fields.keys()):
        yield _Problem(section, f"unknown key {section}{_nearest([section], tables.pop(section))}")


def _explain(error: ValidationError) -> Iterator[_Problem]:
    by_key: dict[str, list[ErrorDetails]] = {}
    for problem in error.errors(include_url=False):
        by_key.setdefault(".".join(_where(problem)), []).append(problem)
    for name, problems in by_key.items():
        # A union reports every alternative that failed; the one that looked deepest into the value says most.
        problem = max(problems, key=lambda each: (len(each["loc"]), not each["type"].endswith("_type")))
        if problem["type"] == "missing":
            yield _Problem(name, f"missing {name}, which has no default")
        elif problem["type"] == "model_type":
            yield _Problem(name, f"{name}: expected a table [{name}], got {_short(problem['input'])}")
        else:
            reason = _reason(problem)
            given = f", got {_short(problem['input'])}" if not isinstance(problem["input"], Mapping) else ""
            yield _Problem(name, f"{name}: {reason}{given}" if name else reason)


def _short(value: object) -> str:
    """A value as Python writes it, without its middle where that is long."""
    return _SHORT.repr(value)


def _reason(problem: ErrorDetails) -> str:
    expected = _EXPECTED.get(problem["type"])
    if expected is None:
        return problem["msg"].removeprefix("Value error, ")
    return f"expected {expected.format(**problem.get('ctx', {}))}"


def _where(problem: ErrorDetails) -> list[str]:
    return [part for part in problem["loc"] if isinstance(part, str)][:2]


def _value(text: str) -> Any:
    """The value of an override: TOML, or else a plain text."""
    try:
        return parsed(f"value = {text}")["value"]
    except ValueError:
        return text


def _nearest(where: Sequence[str], value: object) -> str:
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    key = where[-1]
    keys = {name: _keys(model) for name, model in sections.items()}
    elsewhere = [name for name, known in keys.items() if key in known]
    if elsewhere and not isinstance(value, Mapping):
        return f" (did you mean {elsewhere[0]}.{key}?)"
    if len(where) < 2:
        close = difflib.get_close_matches(key[:100], sections, n=1, cutoff=0.5)
        return f" (did you mean [{close[0]}]?)" if close else f" (there are {', '.join(sections)})"
    section = where[0]
    close = difflib.get_close_matches(key[:100], keys[section], n=1, cutoff=0.5)
    return f" (did you mean {section}.{close[0]}?)" if close else f" ([{section}] has {', '.join(keys[section])})"


def _section_type(section: str) -> Any:
    return Config.model_fields[section].annotation if section in Config.model_fields else None


def _keys(model: Any) -> list[str]:
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
