"""Examples as people have them in Python, made into those of florist."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from florist.data.reading import Example
from florist.errors import DataError

Dataset = Iterable[Any]
"""A ``datasets.Dataset``, or any other iterable of dictionaries, of texts, or of (prompt, answer)."""

PAIR: Mapping[str, Any] = {
    "instruction_field": "prompt",
    "output_field": "completion",
    "prompt_template": "{prompt}",
}
"""Keys of ``[data]`` that read (prompt, answer) as they are, without headings around the prompt."""


@dataclass(frozen=True, slots=True)
class NamedExamples:
    """Examples of all clients, of one kind.

    Attributes:
        by_client: the examples by client.
        keys: keys of ``[data]`` that the kind needs.
    """

    by_client: Mapping[str, list[Example]]
    keys: Mapping[str, Any]


def named_examples(datasets: Any, keyword: str) -> NamedExamples:
    """The examples of every client.

    Args:
        datasets: a data set for each client.
        keyword: the argument that they were given by, for errors.

    Raises:
        DataError: there are no clients, a name is no text, a data set is empty or no data set, or the examples are of
            more than one kind.
    """
    if not isinstance(datasets, Mapping) or not datasets:
        raise DataError(
            f"{keyword}: expected a mapping from the name of each client to its examples, got {_short(datasets)}"
        )
    by_client: dict[str, list[Example]] = {}
    kinds: set[str] = set()
    for name, dataset in datasets.items():
        if not isinstance(name, str) or not name:
            raise DataError(f"{keyword}: expected names of clients that are texts, got {name!r}")
        by_client[name], kind = _examples(dataset, f"{keyword}[{name!r}]")
        kinds.add(kind)
    if len(kinds) > 1:
        raise DataError(f"{keyword}: expected examples of one kind, got {' and '.join(sorted(kinds))}; convert some")
    return NamedExamples(by_client, PAIR if kinds == {_PAIRS} else {})


def held_out_examples(
    dataset: Dataset | Mapping[str, Dataset], keyword: str
) -> list[Example] | dict[str, list[Example]]:
    """Held-out examples, of all clients together or of each.

    Raises:
        DataError: as `named_examples`.
    """
    if isinstance(dataset, Mapping):
        return dict(named_examples(dataset, keyword).by_client)
    return _examples(dataset, keyword)[0]


def fingerprint_of(examples: Iterable[Example]) -> str:
    """How many examples there are, and the first digits of a SHA-256 over all of them."""
    found, count = hashlib.sha256(), 0
    for example in examples:
        found.update(json.dumps(example, sort_keys=True, default=str).encode())
        found.update(b"\n")
        count += 1
    return f"{count} examples of sha256 {found.hexdigest()[:16]}"


_PAIRS, _TEXTS, _DICTIONARIES = "(prompt, answer)", "texts", "dictionaries"


def _examples(dataset: Any, source: str) -> tuple[list[Example], str]:
    if isinstance(dataset, str | bytes | Mapping) or not (
        isinstance(dataset, Iterable) or hasattr(dataset, "__getitem__")
    ):
        raise DataError(
            f"{source}: expected a datasets.Dataset or a list of dictionaries, of texts or of (prompt, answer), got "
            f"{_short(dataset)}"
        )
    examples: list[Example] = []
    kinds: dict[str, int] = {}
    for number, each in enumerate(dataset, start=1):
        example, kind = _example(each, source, number)
        examples.append(example)
        kinds.setdefault(kind, number)
    if not examples:
        raise DataError(f"{source}: expected at least one example, got none; leave the client out")
    if len(kinds) > 1:
        several = " and ".join(f"{kind} (example {number})" for kind, number in kinds.items())
        raise DataError(f"{source}: expected examples of one kind, got {several}; convert some")
    return examples, next(iter(kinds))


def _example(each: Any, source: str, number: int) -> tuple[Example, str]:
    if isinstance(each, str):
        return {"text": each}, _TEXTS
    if isinstance(each, Mapping):
        return {str(name): _plain(value) for name, value in each.items()}, _DICTIONARIES
    if isinstance(each, tuple | list) and len(each) == 2 and all(isinstance(part, str) for part in each):
        return {"prompt": each[0], "completion": each[1]}, _PAIRS
    raise DataError(
        f"{source}, example {number}: expected a dictionary, a text or (prompt, answer), got {_short(each)}"
    )


def _plain(value: Any) -> Any:
    """A tensor or an array as a list of numbers."""
    return value.tolist() if hasattr(value, "tolist") else value


def _short(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
