"""Masked rounds of clients without a model."""
