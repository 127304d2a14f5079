"""Kedro datasets of our own: what no published class stores."""
