"""Base models of transformers and their adapters: loading, quantising, training."""
