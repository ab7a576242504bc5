"""Rounds of a federation: the rules, the state that they move, the record of each, and the engine in one process."""
