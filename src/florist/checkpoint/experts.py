"""The experts of a mixture, in the two ways in which PEFT stores their adapters.

Where a model keeps its experts in one stacked parameter, `target_parameters` adapts it, and one pair of matrices holds
all experts. Where each expert has linear modules of its own, as in transformers 4, each has a pair of its own, which
PEFT stacks when it loads the adapter into a model of today.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from florist.checkpoint.keys import ends_of
from florist.checkpoint.settings import LoraSettings
from florist.errors import InvalidAdapterError, UnsupportedAdapterError
from florist.factors import LoraFactor

_MOST_PARAMETERS = 6
"""The largest number of adapted parameters of one module: trying every order of more is slow, and no model has more."""

_MOST_EXPERTS = 20_000
"""The largest number of experts of one parameter: each becomes a module of its own, and no model has a tenth of it."""


_STACKED_WHEN_LOADED = re.compile(
    r"(.*\.)?(experts\.\d+\.(w1|w2|w3|gate_proj|up_proj|down_proj)|(block_sparse_moe|mlp)\.gate)"
)
"""An expert's linear modules and the router, by the names that PEFT converts (`_MOE_TARGET_MODULE_MAPPING`)."""


@dataclass(frozen=True, slots=True)
class ExpertPair:
    """What one stored pair of matrices holds.

    Attributes:
        experts: E, how many experts there are.
        rank: r, the rank of each expert.
        scaling: the scaling of each expert.
    """

    experts: int
    rank: int
    scaling: float


def is_stacked_when_loaded(module: str) -> bool:
    """Whether PEFT may rename a linear module when it loads the adapter, so that `rank_pattern` no longer finds it.

    PEFT stacks the experts of Mixtral, Qwen and their kin into one parameter a layer, and adapts the router as a
    parameter. It assumes the config's `r` for all of these. They therefore need one rank, and `r` has to be that rank.
    """
    return _STACKED_WHEN_LOADED.fullmatch(module) is not None


def base_module(stored: str) -> str:
    """The name of a stored module in the base model.

    PEFT stores a second adapted parameter of a module one ``.base_layer`` deeper than the first.
    """
    while stored.endswith(".base_layer"):
        stored = stored.removesuffix(".base_layer")
    return stored


def adapted_parameters(settings: LoraSettings, modules: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The parameters of each module that `target_parameters` may mean. A module that is adapted itself has none.

    A setting without a dot ("gate_up_proj") names a parameter of any module.

    Returns:
        The modules that have some, and their parameters.

    Raises:
        InvalidAdapterError: matching `target_modules` takes too long.
    """
    if not settings.target_parameters:
        return {}
    whole = settings.targeted(modules)
    split = [setting.rpartition(".") for setting in settings.target_parameters]
    found: dict[str, tuple[str, ...]] = {}
    for module in modules:
        ends = {"", *ends_of(module)}
        names = dict.fromkeys(name for owner, _, name in split if owner in ends)
        if names and module not in whole:
            found[module] = tuple(names)
    return found


def resolve_pairs(
    settings: Mapping[str, tuple[int, float]], module: str, parameters: Sequence[str], rows: Mapping[str, int]
) -> dict[str, ExpertPair]:
    """Find the rank and the number of experts of each stored pair of one module.

    The file does not say which parameter a pair belongs to, and their ranks may differ (PEFT doubles that of a fused
    gate and up projection). All parameters of a module have the same number of experts, which settles it.

    Args:
        settings: the rank and scaling that the config gives to each parameter, by its whole name.
        module: the name of the module in the base model.
        parameters: the parameters to which the pairs may belong.
        rows: stored module name -> the number of rows of its A, which is E r.

    Raises:
        InvalidAdapterError: no assignment fits the config's ranks.
        UnsupportedAdapterError: several assignments fit.
    """
    resolved = sorted(settings[f"{module}.{name}"] for name in parameters)
    if len(resolved) > _MOST_PARAMETERS:
        raise UnsupportedAdapterError(
            f"expected at most {_MOST_PARAMETERS} target_parameters of one module, got {len(resolved)} for {module}"
        )
    orders = permutations(resolved, len(rows))
    fitting = {pairs for order in orders if (pairs := _fit(list(rows.values()), order)) is not None}
    if not fitting:
        raise InvalidAdapterError(
            f"expected lora_A of {module} to have E r rows with the config's ranks "
            f"{sorted(rank for rank, _ in resolved)} and one number of experts E, got {dict(rows)}"
        )
    if len(fitting) > 1:
        raise UnsupportedAdapterError(
            f"the parameters {', '.join(parameters)} of {module} have unlike ranks or alphas, and the stored shapes do "
            "not tell which is which; name the module in target_parameters, or train them with one rank and alpha"
        )
    pairs = dict(zip(rows, fitting.pop(), strict=True))
    most = max(pair.experts for pair in pairs.values())
    if most > _MOST_EXPERTS:
        raise UnsupportedAdapterError(f"expected at most {_MOST_EXPERTS} experts in {module}, got {most}")
    return pairs


def _fit(rows: Sequence[int], resolved: Sequence[tuple[int, float]]) -> tuple[ExpertPair, ...] | None:
    pairs = tuple(ExpertPair(count // rank, rank, scale) for count, (rank, scale) in zip(rows, resolved, strict=True))
    whole = all(pair.experts * pair.rank == count for pair, count in zip(pairs, rows, strict=True))
    return pairs if whole and len({pair.experts for pair in pairs}) == 1 else None


def split_expert(A: Tensor, B: Tensor, pair: ExpertPair, expert: int) -> tuple[Tensor, Tensor]:
    """Views of one expert's A (r, in) and B (out, r)."""
    return A[expert * pair.rank : (expert + 1) * pair.rank], B[:, expert :: pair.experts]


def join_experts(factors: Sequence[LoraFactor]) -> LoraFactor:
    """The stored pair of experts of one rank.

    A (E r, in) holds one expert after the other; B (out, r E) holds the first column of every expert, then the second.
    """
    return LoraFactor(
        B=torch.stack([factor.B for factor in factors], dim=2).flatten(1),
        A=torch.cat([factor.A for factor in factors], dim=0),
    )
