"""parameters_smollm2_models.yml: SmolLM2 as a slow thinker, and its aligned model."""

from realign_pipes.smollm2.parameters import Smollm2Models

__all__ = ["Smollm2Models"]
