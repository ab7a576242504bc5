"""Adapters of a live PEFT model, combined where they are."""

from florist.peft.adding import add_weighted_adapter

__all__ = ["add_weighted_adapter"]
