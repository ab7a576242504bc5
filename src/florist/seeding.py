"""Seeds that depend on the run's seed and on their purpose, and on nothing else.

A run has one seed. Whatever is random in it (the choice of clients, an initial A, the order of batches) draws from a
seed that is derived from that one and from the purpose. A resumed run, another engine and another order of clients
therefore draw the same numbers.
"""

import hashlib
import json

import torch
from jaxtyping import Float
from torch import Tensor


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a seed in [0, 2^31) for one purpose of a run.

    The seed comes from a SHA-256 of the run's seed and the purpose, so that it is the same on every machine and under
    every version of Python. It has 31 bits because NumPy, which training libraries seed as well, takes at most 32.
    """
    digest = hashlib.sha256(json.dumps([seed, *purpose]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a generator on the CPU that is seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


def random_rows(seed: int, module: str, count: int, in_features: int) -> Float[Tensor, "count in_features"]:
    """Draw the rows of A that a module's local adapter starts from where nothing else is given.

    The distribution is PEFT's default, uniform in ``+-1/sqrt(in_features)`` (Kaiming with a = sqrt(5)). Whoever knows
    the seed draws the same rows: a client trains from them, and the server checks by them that an A which nobody trains
    has not changed.
    """
    bound = in_features**-0.5
    return torch.empty(count, in_features).uniform_(-bound, bound, generator=generator(seed, module))
