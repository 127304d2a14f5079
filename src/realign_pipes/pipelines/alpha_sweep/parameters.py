"""parameters_alpha_sweep.yml: which candidates are measured, and how."""

from realign_pipes.sweep.parameters import AlphaSweep

__all__ = ["AlphaSweep"]
