"""Federated LoRA fine-tuning of language models after FLoRIST (arXiv:2506.09199).

The names below are loaded when they are first used, so that ``import florist`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from florist.aggregation import (
        FedEx,
        FedIt,
        FedSvd,
        FfaLora,
        FlexLora,
        Flora,
        Florist,
        FullFineTuning,
        LinearRounds,
        RaFlora,
    )
    from florist.checkpoint import Export, open_adapter
    from florist.errors import FloristError
    from florist.factors import AdapterState, LoraFactor
    from florist.federation.guard import Guard
    from florist.federation.local_init import Aligned, Fresh, Warm
    from florist.one_shot import AggregatedAdapter, aggregate
    from florist.ranks import (
        ByteBudget,
        Capped,
        EnergyThreshold,
        FixedRank,
        GlobalEnergyThreshold,
        NoiseEdge,
        OptimalShrinkage,
    )
    from florist.rounds import Broadcast, Certificate, ClientUpdate
    from florist.simulating import simulate

    __version__: str

__all__ = [
    "AdapterState",
    "AggregatedAdapter",
    "Aligned",
    "Broadcast",
    "ByteBudget",
    "Capped",
    "Certificate",
    "ClientUpdate",
    "EnergyThreshold",
    "Export",
    "FedEx",
    "FedIt",
    "FedSvd",
    "FfaLora",
    "FixedRank",
    "FlexLora",
    "Flora",
    "Florist",
    "FloristError",
    "Fresh",
    "FullFineTuning",
    "GlobalEnergyThreshold",
    "Guard",
    "LinearRounds",
    "LoraFactor",
    "NoiseEdge",
    "OptimalShrinkage",
    "RaFlora",
    "Warm",
    "aggregate",
    "open_adapter",
    "simulate",
]

_HOMES = {
    "AdapterState": "florist.factors",
    "AggregatedAdapter": "florist.one_shot",
    "Aligned": "florist.federation.local_init",
    "Broadcast": "florist.rounds",
    "ByteBudget": "florist.ranks",
    "Capped": "florist.ranks",
    "Certificate": "florist.rounds",
    "ClientUpdate": "florist.rounds",
    "EnergyThreshold": "florist.ranks",
    "Export": "florist.checkpoint",
    "FedEx": "florist.aggregation",
    "FedIt": "florist.aggregation",
    "FedSvd": "florist.aggregation",
    "FfaLora": "florist.aggregation",
    "FixedRank": "florist.ranks",
    "FlexLora": "florist.aggregation",
    "Flora": "florist.aggregation",
    "Florist": "florist.aggregation",
    "FloristError": "florist.errors",
    "Fresh": "florist.federation.local_init",
    "FullFineTuning": "florist.aggregation",
    "GlobalEnergyThreshold": "florist.ranks",
    "Guard": "florist.federation.guard",
    "LinearRounds": "florist.aggregation",
    "LoraFactor": "florist.factors",
    "NoiseEdge": "florist.ranks",
    "OptimalShrinkage": "florist.ranks",
    "RaFlora": "florist.aggregation",
    "Warm": "florist.federation.local_init",
    "aggregate": "florist.one_shot",
    "open_adapter": "florist.checkpoint",
    "simulate": "florist.simulating",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415  # slower than all the rest of this module

        return version("florist")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'florist' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__, "__version__"]
