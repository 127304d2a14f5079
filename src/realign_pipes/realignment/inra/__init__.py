"""InRa, inference-time realignment: one model whose alpha is set for each call, row and token."""

from realign_pipes.realignment.inra.configuration_inra import InRaConfig
from realign_pipes.realignment.inra.modeling_inra import InRaForCausalLM
from realign_pipes.realignment.inra.schedules import TokenBudget

__all__ = ["InRaConfig", "InRaForCausalLM", "TokenBudget"]
