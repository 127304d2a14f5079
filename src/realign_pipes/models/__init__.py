"""Checkpoints: what is believed of them, loading, fingerprints and model cards."""
