"""Normal numbers and draws: from a seed, so that a run can be repeated, or from the system, and known to nobody."""

import math
import os
import secrets
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

Item = TypeVar("Item")
"""What is drawn."""

_BITS = 53
"""The bits of a uniform number in a double."""


def normal_numbers(shape: Sequence[int], generator: torch.Generator | None) -> Float64[Tensor, "..."]:
    """Independent standard normal numbers in float64.

    Args:
        shape: the shape of the result.
        generator: draws them; None for the system's source of randomness. A generator of torch takes no more than 32
            bits of its seed, which can be tried out, however secret the seed is.

    Cost: from the system, about 140 ns a number (measured while other programs ran).
    """
    if generator is not None:
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    count = math.prod(shape)
    half = (count + 1) // 2
    words = np.frombuffer(os.urandom(16 * half), dtype="<u8").reshape(2, half)
    # Box and Muller. A uniform number is never 0, whose logarithm there is not.
    radius = np.sqrt(-2 * np.log(((words[0] >> np.uint64(64 - _BITS)) + 1) * 2.0**-_BITS))
    angle = 2 * np.pi * (words[1] >> np.uint64(64 - _BITS)) * 2.0**-_BITS
    numbers = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return torch.from_numpy(numbers.reshape(tuple(shape)))


def drawn_in_secret(items: Sequence[Item], count: int) -> list[Item]:
    """So many of the items, each set of them as likely as any other, by the system's source of randomness."""
    return secrets.SystemRandom().sample(items, count)


def each_in_secret(items: Sequence[Item], probability: float) -> list[Item]:
    """Each item by itself with a probability, by the system's source of randomness."""
    source = secrets.SystemRandom()
    return [item for item in items if source.random() < probability]
