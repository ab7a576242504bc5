"""Comparisons of methods and variants, which all get the same data, clients and batches, over several seeds."""
