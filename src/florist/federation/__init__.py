"""The rounds of a federation: their rules, the state that they move, their records, and the engine in one process."""
