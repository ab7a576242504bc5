"""Files that are written whole or not at all, one process at a time, in strict JSON."""
