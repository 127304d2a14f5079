"""Serving checkpoints: vLLM in its own environment and its own processes."""
