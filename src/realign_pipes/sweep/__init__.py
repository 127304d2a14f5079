"""The alpha sweep: its kinds of candidates, measuring them, and the figures."""
