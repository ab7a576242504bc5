"""A federation with faults; `client` says which."""
