"""Independent modules at once: a core each beats all cores on one module after the other."""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_AT_ONCE = 4
"""At most: each needs the memory of a module."""


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``map(function, items)``, several items at a time, each with its share of torch's threads.

    Up to four at once and no more than torch may use threads (``torch.set_num_threads``). With one thread it is `map`.
    The results come in the order of `items`, and the first error is raised in its turn; what has not begun by then is
    left out.

    Args:
        function: releases the GIL for most of its time, as torch's operations do.
        items: independent of each other.

    Memory: that of four calls, and the results that were not taken yet.
    """
    threads = torch.get_num_threads()
    workers = min(threads, _AT_ONCE)
    if workers == 1:
        yield from map(function, items)
        return
    with _threads_each(threads // workers), ThreadPoolExecutor(workers) as pool:
        yield from pool.map(function, items)


@contextmanager
def _threads_each(count: int) -> Generator[None, None, None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
