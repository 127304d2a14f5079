"""Checkpoints: which are trusted, loading, fingerprints and model cards."""
