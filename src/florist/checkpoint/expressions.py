r"""Which modules the expressions of a config mean, found in bounded time whatever the expressions are.

An expression comes from whoever sent the adapter, and Python's `re` has no limit of time: ``(a+)+$`` keeps it busy for
longer than anybody waits. A linear engine such as RE2 knows another syntax and other classes of characters than the
`re` that PEFT asks, and would be one more binary package on every server. Here, most expressions need no engine at all:
they are names, whole or their ends, perhaps with escaped dots. They are looked up. All others are matched by `re`
itself, in a process of its own that may use `CPU_SECONDS` and a bounded memory.
"""

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache

from florist.errors import InvalidAdapterError, printable

CPU_SECONDS = 1
"""The time that all expressions of a config have together, in seconds of the processor. Most need a thousandth."""
_WALL_SECONDS = 30.0
"""The same on a clock, for a busy machine, and for a system that cannot limit the processor."""
_LONGEST = 100_000
"""The characters of all expressions of a pattern that are more than names. PEFT's users write tens."""
_MOST_STEPS = 20_000_000
"""The look-ups that the names of a config and of a file may cost. Each takes less than a microsecond."""

_PLAIN = re.compile(r"(?:[^\\^$*+?{}\[\]|()]|\\\W)*")
_PLAIN_ALTERNATIVES = re.compile(r"(?:[^\\^$*+?{}\[\]()]|\\\W)*")
_ALTERNATIVE = re.compile(r"((?:[^\\|]|\\.)*)\|", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_WILD = "\x00"
"""Stands for a dot, which matches any character; no name of a module has one."""

_MATCHER = f"""
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, ({CPU_SECONDS}, {CPU_SECONDS} + 1))
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
except (ImportError, ValueError, OSError):
    pass
how, expressions, names = json.load(sys.stdin)
matchers = [getattr(re.compile(one), how) for one in expressions]
found = [[number for number, name in enumerate(names) if matches(name)] for matches in matchers]
json.dump(found, sys.stdout)
"""


def at_the_end(key: str) -> str:
    """The expression by which PEFT finds the modules of a key of `rank_pattern` or `alpha_pattern`."""
    return rf"(.*\.)?({key})$"


def is_plain(key: str) -> bool:
    """Whether a key is a name, as the end of a longer one or behind ``^``, or several in ``(?:a|b)``."""
    return _names_of(key) is not None


def require_expressions(keys: Iterable[str], what: str) -> None:
    """Check that Python compiles every key.

    Args:
        keys: the keys.
        what: where they are from, for the message.

    Raises:
        InvalidAdapterError: Python does not, or they are longer than anybody writes.

    Cost: little for plain ones, else up to some tenths of a second.
    """
    left = _LONGEST
    for key in keys:
        if is_plain(key):
            continue
        left -= len(key)
        try:
            if left < 0:
                raise ValueError(f"such expressions have more than {_LONGEST} characters")  # noqa: TRY301
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of syntax that may mean something else one day
                re.compile(key)
                re.compile(at_the_end(key))
        except (re.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
            raise InvalidAdapterError(
                f"expected a regular expression over module names in {what}, got '{printable(key, 100)}': "
                f"{printable(str(error), 200)}; name the modules instead"
            ) from error


def first_matches(keys: Sequence[str], names: Collection[str]) -> dict[str, int]:
    """The first key that PEFT would find for each name, by its place; names that no key means are left out.

    Args:
        keys: expressions that `require_expressions` accepts, each for the end of a name.
        names: module names, which have no line breaks.

    Raises:
        InvalidAdapterError: matching takes too long.

    Cost: microseconds a name, and a process of about 30 ms if a key is not plain.
    """
    plain = _PlainKeys(keys)
    if plain.masks * len(names) > _MOST_STEPS:
        raise InvalidAdapterError(
            f"expected patterns for {len(names)} modules that are looked up in reasonable time, got {len(keys)} keys "
            "of unlike shapes; name whole modules, or write fewer keys"
        )
    found = {name: number for name in names if (number := plain.first(name)) is not None}
    if plain.others:
        others = [keys[number] for number in plain.others]
        for number, matched in zip(plain.others, matching([at_the_end(key) for key in others], names), strict=True):
            for name in matched:
                found[name] = min(number, found.get(name, number))
    return found


def matching(expressions: Sequence[str], names: Collection[str], *, whole: bool = False) -> list[list[str]]:
    """The names that each expression matches, by Python's `re` in a process of its own.

    Args:
        expressions: what `re` compiles.
        names: any text.
        whole: whether the whole name has to match, as for `re.fullmatch`, and not its beginning, as for `re.match`.

    Raises:
        InvalidAdapterError: it takes too long.

    Cost: a process of about 30 ms, or nothing if the same was asked lately, as it is for the clients of a federation.
    """
    ordered = tuple(names)
    found = _matched("fullmatch" if whole else "match", tuple(expressions), ordered)
    return [[ordered[number] for number in one] for one in found]


@lru_cache(maxsize=32)
def _matched(how: str, expressions: tuple[str, ...], names: tuple[str, ...]) -> list[list[int]]:
    quoted = ", ".join(f"'{printable(expression, 60)}'" for expression in expressions[:3])
    if not sys.executable:
        raise InvalidAdapterError(
            f"expected plain module names, since this Python cannot start another to match {quoted}"
        )
    try:
        done = subprocess.run(  # noqa: S603  # this Python, and a constant program
            [sys.executable, "-I", "-S", "-W", "ignore", "-c", _MATCHER],
            input=json.dumps([how, expressions, names]).encode(),
            capture_output=True,
            check=True,
            timeout=_WALL_SECONDS,
        )
    except OSError as error:
        raise InvalidAdapterError(
            f"expected plain module names, since no process can be started to match {quoted}: {error}"
        ) from error
    except subprocess.SubprocessError as error:
        raise InvalidAdapterError(
            f"expected expressions over module names that are matched within {CPU_SECONDS} s, got {quoted}, "
            "which are not: some expressions take Python longer than anybody waits; name the modules instead"
        ) from error
    return json.loads(done.stdout)


class _PlainKeys:
    """Looks up which of many plain keys a name has.

    Keys of one length with dots at the same places need one look-up together.

    Args:
        keys: all keys; `others` has the places of those that are not plain.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self.others: list[int] = []
        self._tables: dict[tuple[bool, int], dict[tuple[int, ...], dict[str, int]]] = {}
        for number, key in enumerate(keys):
            names = _names_of(key)
            if names is None:
                self.others.append(number)
                continue
            for name in names:
                mask = tuple(place for place, letter in enumerate(name) if letter == _WILD)
                tables = self._tables.setdefault((key.startswith("^"), len(name)), {})
                tables.setdefault(mask, {}).setdefault(name, number)

    @property
    def masks(self) -> int:
        """The most look-ups that one name needs."""
        return sum(len(tables) for tables in self._tables.values())

    def first(self, name: str) -> int | None:
        """The place of the first plain key that means a module; None if there is none."""
        ends = [0, *(place + 1 for place, letter in enumerate(name) if letter == ".")]
        found = [number for start in ends for number in self._ending(name[start:], whole=start == 0)]
        return min(found, default=None)

    def _ending(self, end: str, *, whole: bool) -> list[int]:
        found: list[int] = []
        for anchored in (False, True) if whole else (False,):
            tables: Mapping[tuple[int, ...], Mapping[str, int]] = self._tables.get((anchored, len(end)), {})
            for mask, numbers in tables.items():
                number = numbers.get(_masked(end, mask))
                if number is not None:
                    found.append(number)
        return found


def _masked(name: str, mask: tuple[int, ...]) -> str:
    letters = list(name)
    for place in mask:
        letters[place] = _WILD
    return "".join(letters)


def _names_of(key: str) -> list[str] | None:
    """The names that a plain key stands for, with `_WILD` for each dot; None if the key is not plain."""
    body = key.removeprefix("^")
    grouped = body.startswith("(?:") and body.endswith(")")
    if grouped:
        body = body[3:-1]
    if _WILD in body or not (_PLAIN_ALTERNATIVES if grouped else _PLAIN).fullmatch(body):
        return None
    return [_wild(each) for each in _ALTERNATIVE.findall(f"{body}|")]


def _wild(plain: str) -> str:
    if "\\" not in plain:
        return plain.replace(".", _WILD)
    parts = _ESCAPED.split(plain)  # what lies between, an escaped character, what lies between...
    return "".join(part if number % 2 else part.replace(".", _WILD) for number, part in enumerate(parts))
