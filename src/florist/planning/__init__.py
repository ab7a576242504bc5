"""What a federation will cost before it starts: bytes, memory and operations, from a model's configuration alone."""
