"""Methods and variants against each other: the same data, clients and batches for each, over several seeds."""
