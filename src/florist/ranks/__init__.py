"""How many directions each module keeps: a rank rule turns the spectra of all modules into a rank for each.

Energy is the sum of squared singular values. A rule sees all modules at once, so that it may share a budget between
them. Each rule has a file of its own.
"""

from florist.ranks.byte_budget import ByteBudget
from florist.ranks.capped import Capped
from florist.ranks.energy_threshold import EnergyThreshold
from florist.ranks.fixed_rank import FixedRank
from florist.ranks.global_energy_threshold import GlobalEnergyThreshold
from florist.ranks.noise_edge import NoiseEdge
from florist.ranks.optimal_shrinkage import OptimalShrinkage
from florist.ranks.rule import RankRule

__all__ = [
    "ByteBudget",
    "Capped",
    "EnergyThreshold",
    "FixedRank",
    "GlobalEnergyThreshold",
    "NoiseEdge",
    "OptimalShrinkage",
    "RankRule",
]
