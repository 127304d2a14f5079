"""The kinds of candidates: the one table from which the sweep, tables and figures take theirs.

To add a kind, add a row to `_KINDS`, and candidates of it to `pipelines/alpha_sweep/job.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a run that only draws figures starts without torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from realign_pipes.generation.engine import Engine
    from realign_pipes.generation.servers import Served
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
    """One checkpoint; for DeRa, and where weights are merged or subtracted, the reference's and the aligned model's."""
    budget: int | None = None
    """Tokens of a whole completion, for the kinds of budgets."""
    schedule: Schedule | None = None
    """What alpha follows if it changes from token to token; a dataclass, as it is part of the work's description."""
    plausibility: float = 0.0
    """Beta of the mask: where logits are mixed, in the teacher of TrRa, or as a min-p of the one model. 0: no mask."""
    density: float | None = None
    """Share of the difference of the weights that `ties` keeps."""
    close_at: int | None = None
    """The token from which thinking that is still open is closed by force."""
    instruction: str | None = None
    """What is added to each question, for the kind `prompt`."""
    rank: int | None = None
    """Of the matrices to which `svd` cuts the difference of the weights."""


@dataclass(frozen=True)
class Kind:
    """One row of the table of kinds."""

    name: str
    label: str
    colour: str
    """Okabe and Ito's colours, which colour-blind readers tell apart; markers differ too."""
    marker: str
    """A symbol of Plotly."""
    open: Callable[[Candidate, int, str | None], Engine]
    """(candidate, number of the tokenizer's tokens, Transformers' name of how attention is computed) -> what draws its
    completions with Transformers."""
    about: str
    """What it is, in a sentence for the report."""
    serve: Callable[[Candidate, Path], Served] | None = None
    """(candidate, a folder for what has yet to be written) -> what a server loads for it. None: no server can."""
    has_alpha: bool = True
    takes_alpha: bool = False
    """Alpha is an argument of each completion, so one engine serves every alpha."""
    biases_close: bool = False
    """Alpha is not a mixture's but a bias on the logit of the tag that closes the thinking."""
    of_budgets: bool = False
    """In the table of token budgets, and not in the sweep's."""
    panel: str | None = None
    """The kind in whose panel of the alpha figure it is drawn; None for a panel of its own."""
    joined: bool = True
    """Lines join its candidates in the order of their alphas."""
    is_models_at_ends: bool = False
    """Alpha 0 is the reference itself, and 1 the aligned model if `alpha_one` says so: its line runs through them."""
    alpha_one: str | None = "aligned"
    """What alpha 1 is: the aligned model, or the kind's own adapter; None for nothing that has a name."""
    alternative: bool = False
    """What somebody could do instead of the paper's methods."""
    trains: bool = False
    """It takes a training, beyond those of the reference and the aligned model."""
    models: int = 1
    """Models in memory."""
    kv_streams: int = 1
    """KV caches of a completion."""
    passes: int = 1
    """Passes through the layers for each token: what it computes, though not how long that takes in one batch."""


def _open_student(candidate: Candidate, vocab_size: int, attention: str | None = None) -> Engine:
    from realign_pipes.generation.transformers_engine import TransformersEngine

    return TransformersEngine.of_checkpoint(candidate.checkpoints[0], attn_implementation=attention)


def _open_model(candidate: Candidate, vocab_size: int, attention: str | None = None) -> Engine:
    from realign_pipes.generation.transformers_engine import TransformersEngine

    return TransformersEngine.of_checkpoint(
        candidate.checkpoints[0], min_p=candidate.plausibility, attn_implementation=attention
    )


def _open_dera(candidate: Candidate, vocab_size: int, attention: str | None = None) -> Engine:
    from realign_pipes.generation.transformers_engine import TransformersEngine
    from realign_pipes.models.load import default_device, load_model
    from realign_pipes.paper.dera import DeRaForCausalLM

    reference, aligned = (
        load_model(path, device=default_device(), attn_implementation=attention) for path in candidate.checkpoints
    )
    pair = DeRaForCausalLM(reference, aligned, candidate.alpha, vocab_size, candidate.plausibility)
    return TransformersEngine(pair)


def _open_merge(candidate: Candidate, vocab_size: int, attention: str | None = None) -> Engine:
    from realign_pipes.generation.transformers_engine import TransformersEngine
    from realign_pipes.models.load import default_device

    return TransformersEngine(_merged(candidate, attention).to(default_device()))


def _merged(candidate: Candidate, attention: str | None = None) -> PreTrainedModel:
    """On the CPU."""
    import torch

    from realign_pipes.models.load import load_model
    from realign_pipes.paper.merging import merge

    cpu = torch.device("cpu")
    reference, aligned = (load_model(path, device=cpu, attn_implementation=attention) for path in candidate.checkpoints)
    return merge(reference, aligned, candidate.alpha, candidate.density)


def _open_lora(candidate: Candidate, vocab_size: int, attention: str | None = None) -> Engine:
    from realign_pipes.generation.transformers_engine import TransformersEngine
    from realign_pipes.models.load import default_device, load_model
    from realign_pipes.paper.low_rank import merge_scaled

    model = load_model(candidate.checkpoints[0], device=default_device(), attn_implementation=attention)
    merge_scaled(model, candidate.alpha)  # one alpha is measured at a time
    return TransformersEngine(model)


def _open_svd(candidate: Candidate, vocab_size: int, attention: str | None = None) -> Engine:
    from realign_pipes.generation.transformers_engine import TransformersEngine
    from realign_pipes.models.load import default_device
    from realign_pipes.paper.low_rank import merge_scaled

    model = _cut_difference(candidate, attention).get_base_model()
    merge_scaled(model, candidate.alpha)
    return TransformersEngine(model.to(default_device()))


def _cut_difference(candidate: Candidate, attention: str | None = None) -> PeftModel:
    """The reference with the adapter, on the CPU."""
    import torch

    from realign_pipes.models.load import default_device, load_model
    from realign_pipes.paper.low_rank import truncated_difference

    cpu, rank = torch.device("cpu"), candidate.rank
    if rank is None:
        raise ValueError(f"{candidate.name} has no rank.")
    reference, aligned = (load_model(path, device=cpu, attn_implementation=attention) for path in candidate.checkpoints)
    return truncated_difference(reference, aligned, rank, device=default_device())[0]


def _open_inra(candidate: Candidate, vocab_size: int, attention: str | None = None) -> Engine:
    from realign_pipes.generation.transformers_engine import TransformersEngine
    from realign_pipes.models.load import default_device
    from realign_pipes.paper.inra import InRaForCausalLM

    model = InRaForCausalLM.from_pretrained(candidate.checkpoints[0], attn_implementation=attention)
    model.to(default_device())
    return TransformersEngine(model, plausibility=candidate.plausibility)


def _serve_student(candidate: Candidate, folder: Path) -> Served:
    return _served(candidate.checkpoints[0])


def _serve_model(candidate: Candidate, folder: Path) -> Served:
    return _served(candidate.checkpoints[0], min_p=candidate.plausibility)


def _serve_inra(candidate: Candidate, folder: Path) -> Served:
    return _served(candidate.checkpoints[0], takes_alpha=True, plausibility=candidate.plausibility)


def _serve_merge(candidate: Candidate, folder: Path) -> Served:
    """A checkpoint of the merged weights, which is written first."""
    from realign_pipes.generation.servers import Served
    from realign_pipes.serving.server import ServedModel

    def write(path: Path) -> None:
        from realign_pipes.models.load import copy_tokenizer

        _merged(candidate).save_pretrained(path)
        copy_tokenizer(candidate.checkpoints[0], path)

    return Served(ServedModel(folder / candidate.name), like=candidate.checkpoints[0], write=write)


def _serve_lora(candidate: Candidate, folder: Path) -> Served:
    """The adapter with its matrices scaled, which is written first; a server does not scale."""
    from realign_pipes.generation.servers import Served
    from realign_pipes.serving.server import ServedModel

    adapter = candidate.checkpoints[0]

    def write(path: Path) -> None:
        from realign_pipes.paper.low_rank import copy_scaled

        copy_scaled(adapter, path, candidate.alpha)

    base = _served(adapter).model.checkpoint
    return Served(ServedModel(base, folder / candidate.name), like=base, write=write)


def _serve_svd(candidate: Candidate, folder: Path) -> Served:
    """The reference with the adapter, which is written first."""
    from realign_pipes.generation.servers import Served
    from realign_pipes.serving.server import ServedModel

    reference = candidate.checkpoints[0]

    def write(path: Path) -> None:
        from realign_pipes.models.card import base_name
        from realign_pipes.paper.low_rank import save_rung

        save_rung(_cut_difference(candidate), path, candidate.alpha, base_name(reference))

    return Served(ServedModel(reference, folder / candidate.name), like=reference, write=write)


def _served(path: Path, **options: Any) -> Served:
    """A checkpoint that is there, or an adapter with its base."""
    from realign_pipes.generation.servers import Served
    from realign_pipes.models.load import resolve_adapter
    from realign_pipes.serving.server import ServedModel

    base = resolve_adapter(path)
    model = ServedModel(path) if base is None else ServedModel(base, path)
    return Served(model, like=model.checkpoint, **options)


# fmt: off
_KINDS = (
    Kind("reference", "Reference", "#222222", "star", _open_model, has_alpha=False, serve=_serve_model,
         about="The model to start from: alpha 0."),
    Kind("aligned", "Aligned", "#D55E00", "diamond", _open_model, has_alpha=False, serve=_serve_model,
         about="The model whose behaviour to move towards: alpha 1."),
    Kind("dera", "DeRa", "#0072B2", "square", _open_dera, is_models_at_ends=True, models=2, kv_streams=2, passes=2,
         about="Decodes with both models at once and mixes their logits."),
    Kind("merge", "Merged weights", "#56B4E9", "hexagon", _open_merge, is_models_at_ends=True, alternative=True,
         serve=_serve_merge,
         about="One model whose weights are (1 - alpha) times the reference's and alpha times the aligned model's: no "
               "training, and nothing to pay when it generates."),
    Kind("ties", "TIES", "#56B4E9", "hexagram", _open_merge, panel="merge", joined=False, alternative=True,
         serve=_serve_merge,
         about="Merged weights, where only the largest differences between the two models are added (trimmed as by "
               "TIES)."),
    Kind("svd", "Truncated SVD", "#56B4E9", "octagon", _open_svd, panel="merge", is_models_at_ends=True, alpha_one=None,
         alternative=True, serve=_serve_svd,
         about="The reference with alpha times the difference of the two models' linear layers, cut to a low rank: a "
               "LoRA adapter that needs no training."),
    Kind("lora_scale", "Scaled LoRA", "#E69F00", "triangle-down", _open_lora, alpha_one="student", alternative=True,
         trains=True, serve=_serve_lora,
         about="One LoRA student (TrRa at alpha 1) whose matrices are scaled by alpha: one model with a knob."),
    Kind("trra", "TrRa", "#009E73", "circle", _open_student, trains=True, serve=_serve_student,
         about="One model, distilled from the mixture of both at one alpha."),
    Kind("trra_iter", "TrRa-iter", "#CC79A7", "triangle-up", _open_student, panel="trra", joined=False, trains=True,
         serve=_serve_student,
         about="TrRa repeated, with its own result as the aligned model."),
    Kind("inra", "InRa", "#B8860B", "cross", _open_inra, takes_alpha=True, alpha_one="adapter", trains=True,
         kv_streams=2, passes=2, serve=_serve_inra,
         about="One model with a trained adapter layer; alpha is set as it generates."),
    Kind("close_bias", "Closing bias", "#999999", "hourglass", _open_model, biases_close=True, alternative=True,
         is_models_at_ends=True, alpha_one=None,
         about="The reference with a bias on the logit of the tag that closes its thinking, given as its alpha."),
    Kind("prompt", "Prompt", "#56B4E9", "triangle-right", _open_model, has_alpha=False, alternative=True,
         serve=_serve_model,
         about="The reference with an instruction at the end of each question."),
    Kind("other", "Other", "#999999", "pentagon", _open_model, has_alpha=False, alternative=True, serve=_serve_model,
         about="A checkpoint that was made elsewhere."),
    Kind("truncation", "Plain truncation", "#222222", "circle", _open_model, has_alpha=False, of_budgets=True,
         serve=_serve_model,
         about="The reference, cut off at the budget."),
    Kind("forced_close", "Forced closing", "#0072B2", "square", _open_model, has_alpha=False, of_budgets=True,
         serve=_serve_model,
         about="The reference, whose thinking is closed by force where just enough of the budget is left for the "
               "answer."),
    Kind("token_budget", "TokenBudget", "#B8860B", "cross", _open_inra, takes_alpha=True, of_budgets=True, trains=True,
         kv_streams=2, passes=2, serve=_serve_inra,
         about="InRa that thinks like the reference (alpha 0) for a share of the budget and then raises alpha to 1; "
               "thinking that is still open where Forced closing closes it is closed there too."),
)
# fmt: on

KINDS = {kind.name: kind for kind in _KINDS}
"""In the order of tables and legends."""


def model_of(candidate: Candidate) -> tuple[Any, ...]:
    """What candidates have in common whose model is loaded only once: equal for two of them that share it."""
    kind = KINDS[candidate.kind]
    of_the_model = kind.has_alpha and not kind.takes_alpha and not kind.biases_close
    fixed_alpha = candidate.alpha if of_the_model else None
    return (
        kind.open, candidate.checkpoints, fixed_alpha, candidate.plausibility, candidate.density, candidate.rank,
    )  # fmt: skip


def sweep_kinds() -> list[str]:
    """Names of the kinds in the sweep's table."""
    return [name for name, kind in KINDS.items() if not kind.of_budgets]


def budget_kinds() -> list[str]:
    """Names of the kinds in the table of token budgets."""
    return [name for name, kind in KINDS.items() if kind.of_budgets]


def without_alpha() -> list[str]:
    """Names of the kinds in the sweep's table that have no alpha."""
    return [name for name in sweep_kinds() if not KINDS[name].has_alpha]
