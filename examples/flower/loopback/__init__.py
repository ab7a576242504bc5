"""Flower's programs on one machine, for trying out a federation and for tests of its faults. Linux only."""

from .deployment import Deployment, Patience
from .flower import FlowerError, RunStatus, read_key_values
from .processes import Process, Program, ProgramError
from .starting import deploy, partitions, simulate

__all__ = [
    "Deployment",
    "FlowerError",
    "Patience",
    "Process",
    "Program",
    "ProgramError",
    "RunStatus",
    "deploy",
    "partitions",
    "read_key_values",
    "simulate",
]
