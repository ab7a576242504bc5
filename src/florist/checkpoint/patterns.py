r"""How PEFT's `rank_pattern` and `alpha_pattern` address modules, and how to write ones that cannot misfire.

PEFT gives a module the value of the first key with ``re.match(rf"(.*\.)?({key})$", module)``. Keys are thus regular
expressions: a dot matches any character, and ``a.b`` also matches ``x.a.b``. Where none matches, a key that equals the
module's name counts, expression or not.

Expressions come from the config that is read, and Python's `re` has no time limit: one that is made for it matches for
ever. No rule over expressions finds all of these and spares those that PEFT's users write, so that none is applied.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from florist.errors import InvalidAdapterError

_MOST_KEYS = 400
"""The largest number of keys. Python caches 512 compiled expressions; with more, PEFT compiles all for every module."""

Value = TypeVar("Value", int, float)


@dataclass(frozen=True, slots=True)
class ModulePattern(Generic[Value]):
    """A pattern whose keys are compiled.

    Attributes:
        values: the pattern as it is in the config.
        matchers: the keys' regular expressions and their values, in the order in which PEFT tries them.
    """

    values: Mapping[str, Value]
    matchers: tuple[tuple[re.Pattern[str], Value], ...]

    @classmethod
    def of(cls, pattern: Mapping[str, Value]) -> "ModulePattern[Value]":
        """Compile the keys.

        Raises:
            InvalidAdapterError: a key is not a regular expression.
        """
        return cls(pattern, tuple((_compile(key), value) for key, value in pattern.items()))

    def value(self, module: str, default: Value) -> Value:
        """The value that PEFT gives to a module.

        Cost: O(keys).
        """
        named = self.values.get(module, default)
        return next((value for matcher, value in self.matchers if matcher.match(module)), named)


def rank_pattern(ranks: Mapping[str, int], default: int) -> dict[str, int]:
    """The `rank_pattern` from which PEFT reads exactly `ranks`.

    Keys are full module names. A key that PEFT would also apply to another module of `ranks`, or that is no regular
    expression for its own, becomes ``"^" + re.escape(name)``, which matches that one module and nothing else. With
    very many modules, one key ``"^(?:name|name...)"`` stands for all modules of a rank.

    Args:
        ranks: the rank of every module of the adapter, by its full name.
        default: PEFT's `r`. Modules of this rank need no key.

    Returns:
        The keys in sorted order, in which PEFT writes them back when it saves the adapter again.

    Cost: O(modules * keys) regular expression matches.
    """
    keyed = [name for name, rank in ranks.items() if rank != default]
    if len(keyed) > _MOST_KEYS:
        return _one_key_a_rank({name: ranks[name] for name in keyed})
    anchored = {name for name in keyed if not _is_regular_expression(name)}
    while True:
        owners = {_key(name, anchored=name in anchored): name for name in keyed}
        ordered = sorted(owners)
        matchers = [(_compile(key), owners[key]) for key in ordered]
        misfiring: set[str] = set()
        for name, rank in ranks.items():
            owner = next((owner for matcher, owner in matchers if matcher.match(name)), None)
            if (ranks[owner] if owner is not None else default) != rank:
                misfiring.add(name if owner is None else owner)
        if not misfiring:
            return {key: ranks[owners[key]] for key in ordered}
        anchored |= misfiring


def _one_key_a_rank(ranks: Mapping[str, int]) -> dict[str, int]:
    names: dict[int, list[str]] = {}
    for name, rank in sorted(ranks.items()):
        names.setdefault(rank, []).append(re.escape(name))
    return dict(sorted((f"^(?:{'|'.join(group)})", rank) for rank, group in names.items()))


def _key(name: str, *, anchored: bool) -> str:
    return f"^{re.escape(name)}" if anchored else name


def _is_regular_expression(key: str) -> bool:
    try:
        _compile(key)
    except InvalidAdapterError:
        return False
    return True


def _compile(key: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except re.error as error:
        raise InvalidAdapterError(
            f"expected a regular expression over module names in rank_pattern and alpha_pattern, got {key!r}: {error}"
        ) from error
