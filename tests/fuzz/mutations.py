"""How a byte string and a JSON document are broken: a seeded random generator chooses where and how."""

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

_NASTY_TEXTS = (
    "",
    "\x00",
    "\n[INFO] forged line",
    "\x1b[31mred\x1b[0m",
    "\u202eevil",
    "a" * 5000,
    "../../etc/passwd",
    "/dev/zero",
    "(a+)+$",
    "a{99999999999999999999}",
    "model." * 300,
    "nan",
    "\ud800",
    "ß∂ƒ",
)
_NASTY_NUMBERS = (
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    -(2**63),
    10**400,
    1e308,
    -1e308,
    1e-320,
    0.5,
    float("nan"),
    float("inf"),
)


def nasty_values(rng: random.Random) -> Any:
    """A value that a document should not have in most places."""
    return rng.choice(
        (
            None,
            True,
            False,
            [],
            {},
            [[]],
            {"": {}},
            rng.choice(_NASTY_TEXTS),
            rng.choice(_NASTY_NUMBERS),
            [rng.choice(_NASTY_NUMBERS)] * rng.randint(1, 5),
            {rng.choice(_NASTY_TEXTS): rng.choice(_NASTY_NUMBERS)},
            nested(rng.choice((10, 200, 5000))),
        )
    )


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four faults: flipped, cut, inserted, doubled, zeroed, moved, or other numbers in them."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(_BYTE_FAULTS)(data, rng)
    return bytes(data)


def _place(data: bytearray, rng: random.Random) -> int:
    # Headers are short and bodies long: half of the faults are for the first 300 bytes.
    return rng.randrange(min(len(data), 300) if rng.random() < 0.5 else len(data)) if data else 0


def _flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[_place(data, rng) :]


def _insert(data: bytearray, rng: random.Random) -> None:
    place = _place(data, rng)
    data[place:place] = rng.choice(
        (b"\x00", b"\xff" * 8, b'"', b"{", b"}", b"[" * 500, rng.randbytes(rng.randint(1, 64)))
    )


def _double(data: bytearray, rng: random.Random) -> None:
    place = _place(data, rng)
    data[place:place] = data[place : place + rng.randint(1, 64)]


def _zero(data: bytearray, rng: random.Random) -> None:
    place = _place(data, rng)
    length = min(rng.randint(1, 64), len(data) - place)
    data[place : place + length] = bytes(length)


def _remove(data: bytearray, rng: random.Random) -> None:
    place = _place(data, rng)
    del data[place : place + rng.randint(1, 64)]


def _number(data: bytearray, rng: random.Random) -> None:
    place = _place(data, rng)
    number = rng.choice((0, 1, 0xFFFFFFFF, 2**31, 2**62, 2**63, 2**64 - 1, 100_000_001))
    data[place : place + 8] = number.to_bytes(8, "little")


def _empty(data: bytearray, rng: random.Random) -> None:
    if rng.random() < 0.2:
        data.clear()


_BYTE_FAULTS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip,
    _flip,
    _cut,
    _insert,
    _double,
    _zero,
    _remove,
    _number,
    _empty,
)


def mutated_document(document: Any, rng: random.Random) -> Any:
    """A copy of a JSON document with one to three faults: a value replaced, removed, renamed, doubled or added."""
    broken = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(broken))
        if not places:
            return nasty_values(rng)
        holder, key = rng.choice(places)
        fault = rng.randrange(5)
        if fault <= 1:
            holder[key] = nasty_values(rng)
        elif fault == 2:
            del holder[key]
        elif isinstance(holder, dict):
            holder[rng.choice((*_NASTY_TEXTS, f"{key}.", f" {key}", str(key).upper()))] = (
                holder[key] if fault == 3 else nasty_values(rng)
            )
        else:
            holder.append(_copied(holder[key]) if fault == 3 else nasty_values(rng))
    return broken


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except RecursionError:  # it is what another fault nested
        return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a document, as its holder and its key. It does not go into what it nested itself."""
    stack = [(value, 0)]
    while stack:
        holder, depth = stack.pop()
        if depth > 20:
            continue
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            yield holder, key
            stack.append((holder[key], depth + 1))
