"""Sampling engines and metrics."""
