"""SFT of the models that this project makes itself: the demo's, and SmolLM2 as a slow thinker."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from realign_pipes.paper.adapters import sft_trainer
from realign_pipes.runtime.parameters import FineTuning, Training
from realign_pipes.runtime.tracking import NOT_TRACKED, Tracking
from realign_pipes.runtime.training import CURVES, in_training_order, train, trainer_arguments, training_state

Examples = list[tuple[list[int], list[int]]]
"""Prompt and completion ids."""


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Examples,
    training: FineTuning,
    folder: Path,
    description: str,
    *,
    micro_batch_size: int | None = None,
    bf16: bool | None = None,
    saved_in: torch.dtype | None = None,
    tracking: Tracking = NOT_TRACKED,
) -> Callable[[Path], None]:
    """Fine-tune the model in place on the completion tokens; the function that then writes its checkpoint.

    `folder` keeps the training's state and curves: an interrupted training resumes there. A batch is computed in
    micro-batches of this size (None: at once), with its longest examples in the last. `bf16` is `Training.bf16`.
    `saved_in` is the dtype of the checkpoint's weights; None: as they were trained.
    """
    recipe = Training(
        steps=training.steps,
        batch_size=training.batch_size,
        micro_batch_size=micro_batch_size or training.batch_size,
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
    if recipe.micro_batch_size < recipe.batch_size:
        lengths = [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in ordered]
        ordered = ordered.select(sorted_batches(lengths, recipe.batch_size))
    arguments = {
        **trainer_arguments(recipe, training_state(folder), tracking),
        "adam_beta2": 0.98,  # the usual 0.999 averages over more steps than a short training has
    }
    train(sft_trainer(model, ordered, tokenizer, arguments), description)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)

    def write(checkpoint: Path) -> None:
        model.to(dtype=saved_in or model.dtype).save_pretrained(checkpoint)
        tokenizer.save_pretrained(checkpoint)
        shutil.copytree(folder / CURVES, checkpoint / CURVES)

    return write


def sorted_batches(lengths: Sequence[int], batch_size: int) -> list[int]:
    """An order of the examples in which each batch has the examples that it has now, the shortest first.

    So its micro-batches have less padding, and the optimizer step is the same. (Batches of similar lengths would have
    less still. But where length is what is learned, such as how often to check, each batch would pull another way.)
    """
    return sorted(range(len(lengths)), key=lambda row: (row // batch_size, lengths[row]))
