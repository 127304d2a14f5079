"""How InRa's layer adapter is trained in "Flexible Realignment of Language Models" (https://arxiv.org/abs/2506.12704):
by SFT on short reasoning, or by SFT and then DPO for dialogue. (By TrRa's objective: `paper.trra`.)

Both use TRL's trainers on data that is already tokenised. They train every weight that requires a gradient.
"""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset, disable_progress_bars
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from realign_pipes.paper.saving import SavesTrainedWeights

disable_progress_bars()  # TRL maps over its data; a bar for each map would bury the bar of the training


class _SFTTrainer(SavesTrainedWeights, SFTTrainer):
    """TRL's trainer, whose states hold only the trained weights."""


def sft_trainer(
    model: PreTrainedModel, examples: Dataset, tokenizer: PreTrainedTokenizerFast, arguments: dict[str, Any]
) -> SFTTrainer:
    """A trainer that minimises the mean cross-entropy of the completion tokens, in nats.

    `examples` has the columns `prompt_ids` and `completion_ids` (token ids); `arguments` are those of SFTConfig.
    """
    rows = [
        {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}
        for prompt, completion in zip(examples["prompt_ids"], examples["completion_ids"], strict=True)
    ]
    return _SFTTrainer(
        model=model,
        args=SFTConfig(**arguments, max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


class _TokenisedDPOTrainer(SavesTrainedWeights, DPOTrainer):
    """TRL's trainer for pairs that are already tokenised: `prompt_ids`, `chosen_ids` and `rejected_ids`."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        # TRL would tokenise prompt and completion together, and train on different ids than the model generates.
        return dataset


def dpo_trainer(
    model: PreTrainedModel,
    base: PreTrainedModel,
    pairs: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    beta: float,
    arguments: dict[str, Any],
    *,
    loss_type: Sequence[str] = ("sigmoid",),
    loss_weights: Sequence[float] | None = None,
) -> DPOTrainer:
    """A trainer for direct preference optimisation of `model` against `base` (InRa: stream A against stream R).

    `pairs` has the columns `prompt_ids`, `chosen_ids` and `rejected_ids` (token ids); `beta` weighs the divergence from
    `base`; `arguments` are those of DPOConfig. The loss is the sum of TRL's `loss_type` terms times `loss_weights` (1
    each): "sigmoid" is DPO's, with the mean over pairs; "sft" the mean cross-entropy of the chosen tokens, in nats.
    """
    return _TokenisedDPOTrainer(
        model=model,
        ref_model=base,
        args=DPOConfig(
            **arguments,
            beta=beta,
            loss_type=list(loss_type),
            loss_weights=None if loss_weights is None else list(loss_weights),
            max_length=None,
        ),
        train_dataset=pairs.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]),
        processing_class=tokenizer,
    )
