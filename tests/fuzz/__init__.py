"""Hostile input: what is mutated, and what florist may do with it. Everything is seeded."""
