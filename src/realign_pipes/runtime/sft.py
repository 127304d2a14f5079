"""SFT of the models that this project makes itself: the demo's, and SmolLM2 as a slow thinker."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from realign_pipes.paper.adapters import sft_trainer
from realign_pipes.runtime.parameters import FineTuning, Training
from realign_pipes.runtime.training import CURVES, in_training_order, train, trainer_arguments, training_state

Examples = list[tuple[list[int], list[int]]]
"""Prompt and completion ids."""
WINDOW = 16
"""Batches among which examples of similar lengths are looked for."""


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Examples,
    training: FineTuning,
    folder: Path,
    description: str,
    *,
    bf16: bool | None = None,
    by_length: bool = False,
    saved_in: torch.dtype | None = None,
) -> Callable[[Path], None]:
    """Fine-tune the model in place on the completion tokens; the function that then writes its checkpoint.

    `folder` keeps the training's state and curves: an interrupted training resumes there. `bf16` is `Training.bf16`.
    With `by_length`, the examples of a batch have similar lengths, so there is less padding to compute. `saved_in` is
    the dtype of the checkpoint's weights; None: as they were trained.
    """
    recipe = Training(
        steps=training.steps,
        batch_size=training.batch_size,
        micro_batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        warmup_ratio=training.warmup_ratio,
        weight_decay=0.0,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        save_steps=training.save_steps,
        seed=training.seed,
        bf16=bf16,
    )
    rows = Dataset.from_list([{"prompt_ids": prompt, "completion_ids": ids} for prompt, ids in examples])
    ordered = in_training_order(rows, recipe)
    if by_length:
        lengths = [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in ordered]
        ordered = ordered.select(order_by_length(lengths, recipe.batch_size, recipe.seed))
    arguments = {
        **trainer_arguments(recipe, training_state(folder)),
        "adam_beta2": 0.98,  # the usual 0.999 averages over more steps than a short training has
    }
    train(sft_trainer(model, ordered, tokenizer, arguments), description)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)

    def write(checkpoint: Path) -> None:
        model.to(dtype=saved_in or model.dtype).save_pretrained(checkpoint)
        tokenizer.save_pretrained(checkpoint)
        shutil.copytree(folder / CURVES, checkpoint / CURVES)

    return write


def order_by_length(lengths: Sequence[int], batch_size: int, seed: int) -> list[int]:
    """A permutation of the examples in which the batches hold similar `lengths` (tokens) and come in random order.

    Examples move within a window of WINDOW batches alone. `lengths` are those of whole batches.
    """
    random, order = np.random.default_rng([seed, batch_size]), []
    for start in range(0, len(lengths), WINDOW * batch_size):
        window = sorted(range(start, min(start + WINDOW * batch_size, len(lengths))), key=lambda row: lengths[row])
        batches = [window[at : at + batch_size] for at in range(0, len(window), batch_size)]
        order += [row for number in random.permutation(len(batches)) for row in batches[number]]
    return order
