"""The method of "Flexible Realignment of Language Models" (https://arxiv.org/abs/2506.12704) in torch, nothing else.

Names are imported on first use: `paper.objective` and `paper.schedules` need only torch, and can be used where
Transformers is missing or has another version.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from realign_pipes.paper.dera import DeRaForCausalLM
    from realign_pipes.paper.expansion import InRaConfig
    from realign_pipes.paper.inra import InRaForCausalLM
    from realign_pipes.paper.merging import merge
    from realign_pipes.paper.objective import divergence_between, fuse_logits, fused_linear_divergence
    from realign_pipes.paper.schedules import TokenBudget
    from realign_pipes.paper.trra import TrRaTrainer
    from realign_pipes.paper.turns import converse

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]
"""Of the teacher's distribution p and the student's q: KL(p || q), KL(q || p) (the paper's Eq. 6), Jensen-Shannon.

It is here and not in `objective` so that parameters can be checked without importing torch."""

_MODULES = {
    "DeRaForCausalLM": "dera",
    "InRaConfig": "expansion",
    "InRaForCausalLM": "inra",
    "TokenBudget": "schedules",
    "TrRaTrainer": "trra",
    "converse": "turns",
    "divergence_between": "objective",
    "fuse_logits": "objective",
    "fused_linear_divergence": "objective",
    "merge": "merging",
}

__all__ = [
    "DeRaForCausalLM",
    "Divergence",
    "InRaConfig",
    "InRaForCausalLM",
    "TokenBudget",
    "TrRaTrainer",
    "converse",
    "divergence_between",
    "fuse_logits",
    "fused_linear_divergence",
    "merge",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
