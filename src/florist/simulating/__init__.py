"""Federations that are begun from code, with objects in the place of what a configuration names."""

from florist.simulating.run import Run
from florist.simulating.starting import simulate

__all__ = ["Run", "simulate"]
