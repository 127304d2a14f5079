"""The kinds of candidates: the one table from which the sweep, tables and figures take theirs.

To add a kind, add a row to `_KINDS`, and candidates of it to `pipelines/alpha_sweep/job.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a run that only draws figures starts without torch
    from realign_pipes.generation.engine import Engine
    from realign_pipes.paper.schedules import Schedule


@dataclass(frozen=True)
class Candidate:
    """One row of a table: a kind, checkpoints and an alpha."""

    name: str
    kind: str
    """A name in `KINDS`."""
    alpha: float
    """NaN if the kind has none, or if alpha follows a schedule."""
    checkpoints: tuple[Path, ...]
    """One checkpoint; for DeRa the reference's and the aligned model's."""
    budget: int | None = None
    """Tokens of a whole completion, for the kinds of budgets."""
    schedule: Schedule | None = None
    """What alpha follows if it changes from token to token; a dataclass, as it is part of the work's description."""


@dataclass(frozen=True)
class Kind:
    """One row of the table of kinds."""

    name: str
    label: str
    colour: str
    """Okabe and Ito's colours, which colour-blind readers tell apart; markers differ too."""
    marker: str
    """A symbol of Plotly."""
    open: Callable[[Candidate, int], Engine]
    """(candidate, number of the tokenizer's tokens) -> what draws its completions."""
    has_alpha: bool = True
    takes_alpha: bool = False
    """Alpha is an argument of each completion, so that one engine serves every alpha."""
    of_budgets: bool = False
    """In the table of token budgets, and not in the sweep's."""


def _open_checkpoint(candidate: Candidate, vocab_size: int) -> Engine:
    from realign_pipes.generation.transformers_engine import TransformersEngine

    return TransformersEngine.of_checkpoint(candidate.checkpoints[0])


def _open_dera(candidate: Candidate, vocab_size: int) -> Engine:
    from realign_pipes.generation.transformers_engine import TransformersEngine
    from realign_pipes.models.load import default_device, load_model
    from realign_pipes.paper.dera import DeRaForCausalLM

    reference, aligned = (load_model(path, device=default_device()) for path in candidate.checkpoints)
    return TransformersEngine(DeRaForCausalLM(reference, aligned, candidate.alpha, vocab_size))


def _open_inra(candidate: Candidate, vocab_size: int) -> Engine:
    from realign_pipes.generation.transformers_engine import TransformersEngine
    from realign_pipes.models.load import default_device
    from realign_pipes.paper.inra import InRaForCausalLM

    return TransformersEngine(InRaForCausalLM.from_pretrained(candidate.checkpoints[0]).to(default_device()))


_KINDS = (
    Kind("reference", "Reference", "#222222", "star", _open_checkpoint, has_alpha=False),
    Kind("aligned", "Aligned", "#D55E00", "diamond", _open_checkpoint, has_alpha=False),
    Kind("dera", "DeRa", "#0072B2", "square", _open_dera),
    Kind("trra", "TrRa", "#009E73", "circle", _open_checkpoint),
    Kind("trra_iter", "TrRa-iter", "#CC79A7", "triangle-up", _open_checkpoint),
    Kind("inra", "InRa", "#B8860B", "cross", _open_inra, takes_alpha=True),
    Kind("truncation", "Plain truncation", "#222222", "circle", _open_checkpoint, has_alpha=False, of_budgets=True),
    Kind("token_budget", "TokenBudget", "#B8860B", "cross", _open_inra, takes_alpha=True, of_budgets=True),
)

KINDS = {kind.name: kind for kind in _KINDS}
"""In the order of tables and legends."""
SWEEP_KINDS = tuple(kind.name for kind in _KINDS if not kind.of_budgets)
BUDGET_KINDS = tuple(kind.name for kind in _KINDS if kind.of_budgets)
WITHOUT_ALPHA = tuple(kind.name for kind in _KINDS if not kind.has_alpha and not kind.of_budgets)
