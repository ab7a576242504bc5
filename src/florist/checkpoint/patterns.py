r"""How PEFT's `rank_pattern` and `alpha_pattern` address modules, and how to write ones that cannot misfire.

PEFT gives a module the value of the first key with ``re.match(rf"(.*\.)?({key})$", module)``. Keys are thus regular
expressions: a dot matches any character, and ``a.b`` also matches ``x.a.b``. Where none matches, a key that equals the
module's name counts, expression or not.

What is written here needs no engine of regular expressions, neither for florist nor for who looks it up.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from florist.checkpoint.expressions import first_matches, is_plain, require_expressions

_MOST_KEYS = 400
"""The largest number of keys. Python caches 512 compiled expressions; with more, PEFT compiles all for every module."""

Value = TypeVar("Value", int, float)


@dataclass(frozen=True, slots=True)
class ModulePattern(Generic[Value]):
    """A pattern whose keys are sound expressions.

    Attributes:
        by_key: the pattern as it is in the config, in the order in which PEFT tries its keys.
    """

    by_key: Mapping[str, Value]

    @classmethod
    def of(cls, pattern: Mapping[str, Value], where: str = "a pattern") -> "ModulePattern[Value]":
        """Check the keys.

        Args:
            pattern: the value of each key.
            where: what the pattern is, for the message.

        Raises:
            InvalidAdapterError: a key is not a regular expression.
        """
        require_expressions(pattern, where)
        return cls(pattern)

    def values(self, modules: Collection[str], default: Value) -> dict[str, Value]:
        """The value that PEFT gives to each module.

        Raises:
            InvalidAdapterError: matching the keys takes too long.

        Cost: that of `first_matches`.
        """
        keys = list(self.by_key)
        found = first_matches(keys, modules) if keys else {}
        return {
            module: self.by_key[keys[found[module]]] if module in found else self.by_key.get(module, default)
            for module in modules
        }


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

    Cost: some look-ups a module.
    """
    keyed = [name for name, rank in ranks.items() if rank != default]
    if len(keyed) > _MOST_KEYS:
        return _one_key_a_rank({name: ranks[name] for name in keyed})
    anchored = {name for name in keyed if not is_plain(name)}
    while True:
        owners = {_key(name, anchored=name in anchored): name for name in keyed}
        ordered = sorted(owners)
        found = first_matches(ordered, ranks)
        misfiring: set[str] = set()
        for name, rank in ranks.items():
            owner = owners[ordered[found[name]]] if name in found else None
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
