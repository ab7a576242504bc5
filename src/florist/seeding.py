"""Seeds that depend on what they are for and on nothing else.

A run has one seed. Whatever is random in it (which clients, which initial A, which batch order) draws from a seed
derived from that one and the purpose, so that a resumed run, another engine, or another order of clients draws the
same numbers.
"""

import hashlib
import json

import torch
from jaxtyping import Float
from torch import Tensor


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2^31) for one purpose of a run.

    The same on every machine and Python version: SHA-256 of the seed and the purpose. (31 bits, since NumPy, which
    training libraries seed as well, takes at most 32.)
    """
    digest = hashlib.sha256(json.dumps([seed, *purpose]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


def random_rows(seed: int, module: str, count: int, in_features: int) -> Float[Tensor, "count in_features"]:
    """The rows of A that a module's local adapter starts from where nothing else is given.

    PEFT's default, uniform in ``+-1/sqrt(in_features)`` (Kaiming with a = sqrt(5)). Whoever knows the seed draws the
    same: a client to train, the server to see that an A which nobody trains is the one that was drawn.
    """
    bound = in_features**-0.5
    return torch.empty(count, in_features).uniform_(-bound, bound, generator=generator(seed, module))
