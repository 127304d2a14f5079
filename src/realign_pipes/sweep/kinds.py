"""The kinds of candidates: the one table from which the sweep, tables and figures take theirs.

To add a kind, add a row to `_KINDS` and let the job of alpha_sweep list candidates of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a run that only draws figures starts without torch
    import torch
    from transformers import PreTrainedModel

    from realign_pipes.generation.engine import Alpha


@dataclass(frozen=True)
class Candidate:
    """One row of a table: a kind, checkpoints and an alpha."""

    name: str
    kind: str
    """A name in `KINDS`."""
    alpha: float
    """NaN where the kind has none, and where alpha follows a budget."""
    checkpoints: tuple[Path, ...]
    """One checkpoint; of DeRa the reference's and the aligned model's."""
    budget: int | None = None
    """Tokens of a whole completion, for the kinds of budgets."""
    schedule: Alpha | None = None
    """What alpha follows where it changes from token to token."""


@dataclass(frozen=True)
class Kind:
    """One row of the table of kinds."""

    name: str
    label: str
    colour: str
    """Okabe and Ito's colours, which colour-blind readers tell apart; markers differ too."""
    marker: str
    """A symbol of Plotly."""
    load: Callable[[Candidate, int, torch.device], PreTrainedModel]
    """(candidate, number of the tokenizer's tokens, device) -> a model with `generate`."""
    has_alpha: bool = True
    takes_alpha: bool = False
    """Alpha is an argument of `generate`, so that one loaded model serves every alpha."""
    of_budgets: bool = False
    """A row of the table of token budgets and not of the sweep's."""


def _load_plain(candidate: Candidate, vocab_size: int, device: torch.device) -> PreTrainedModel:
    from realign_pipes.models.load import load_model

    return load_model(candidate.checkpoints[0], device=device)


def _load_dera(candidate: Candidate, vocab_size: int, device: torch.device) -> PreTrainedModel:
    from realign_pipes.models.load import load_model
    from realign_pipes.paper.dera import DeRaForCausalLM

    reference, aligned = (load_model(path, device=device) for path in candidate.checkpoints)
    return DeRaForCausalLM(reference, aligned, candidate.alpha, vocab_size)


def _load_inra(candidate: Candidate, vocab_size: int, device: torch.device) -> PreTrainedModel:
    from realign_pipes.paper.inra import InRaForCausalLM

    return InRaForCausalLM.from_pretrained(candidate.checkpoints[0]).to(device)


_KINDS = (
    Kind("reference", "Reference", "#222222", "star", _load_plain, has_alpha=False),
    Kind("aligned", "Aligned", "#D55E00", "diamond", _load_plain, has_alpha=False),
    Kind("dera", "DeRa", "#0072B2", "square", _load_dera),
    Kind("trra", "TrRa", "#009E73", "circle", _load_plain),
    Kind("trra_iter", "TrRa-iter", "#CC79A7", "triangle-up", _load_plain),
    Kind("inra", "InRa", "#B8860B", "cross", _load_inra, takes_alpha=True),
    Kind("truncation", "Plain truncation", "#222222", "circle", _load_plain, has_alpha=False, of_budgets=True),
    Kind("token_budget", "TokenBudget", "#B8860B", "cross", _load_inra, takes_alpha=True, of_budgets=True),
)

KINDS = {kind.name: kind for kind in _KINDS}
"""In the order of tables and legends."""
SWEEP_KINDS = tuple(kind.name for kind in _KINDS if not kind.of_budgets)
BUDGET_KINDS = tuple(kind.name for kind in _KINDS if kind.of_budgets)
WITHOUT_ALPHA = tuple(kind.name for kind in _KINDS if not kind.has_alpha and not kind.of_budgets)
