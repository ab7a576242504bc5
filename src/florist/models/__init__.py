"""Base models of transformers, which are loaded, quantised, adapted and trained here."""
