"""Work on several independent modules at once: one core for each beats all cores on one module after the other."""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_AT_ONCE = 4
"""How many modules are worked on at once, at most: each needs the memory of a module."""


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield ``function(item)`` for each item in turn, and work on several items at once.

    Up to four items are worked on at once, and no more than torch may use threads (``torch.set_num_threads``); each
    has its share of these threads. With one thread this is `map`. The results come in the order of `items`. The first
    error is raised in its turn, and what has not begun by then is left out.

    Args:
        function: A function that releases the GIL for most of its time, as torch's operations do.
        items: Items that are independent of each other.

    Cost: the memory of four calls, and that of the results that were not taken yet.
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
