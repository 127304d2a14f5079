"""SFT and DPO of InRa's layer adapter in "Flexible Realignment of Language Models" (https://arxiv.org/abs/2506.12704).

Both are TRL's trainers over token ids that we have already. They train whatever of the model requires a gradient.
"""

from typing import Any

from datasets import Dataset, disable_progress_bars
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

disable_progress_bars()  # TRL maps over its data; a bar for each map would bury the bar of the training


def sft_trainer(
    model: PreTrainedModel, examples: Dataset, tokenizer: PreTrainedTokenizerFast, arguments: dict[str, Any]
) -> SFTTrainer:
    """A trainer that minimises the mean cross-entropy of `completion_ids` after `prompt_ids`, in nats.

    `examples` has these two columns; `arguments` are SFTConfig's.
    """
    rows = [
        {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}
        for prompt, completion in zip(examples["prompt_ids"], examples["completion_ids"], strict=True)
    ]
    return SFTTrainer(
        model=model,
        args=SFTConfig(**arguments, max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


class _TokenisedDPOTrainer(DPOTrainer):
    """TRL's trainer for pairs whose ids we have: `prompt_ids`, `chosen_ids` and `rejected_ids`."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        # TRL would tokenise prompt and completion together, and learn on other ids than the model generates.
        return dataset


def dpo_trainer(
    model: PreTrainedModel,
    base: PreTrainedModel,
    pairs: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    beta: float,
    arguments: dict[str, Any],
) -> DPOTrainer:
    """A trainer for direct preference optimisation of `model` against `base` (InRa: stream A against stream R).

    `pairs` has the columns `prompt_ids`, `chosen_ids` and `rejected_ids`; `beta` weighs the divergence from `base`;
    `arguments` are DPOConfig's.
    """
    return _TokenisedDPOTrainer(
        model=model,
        ref_model=base,
        args=DPOConfig(**arguments, beta=beta, max_length=None),
        train_dataset=pairs.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]),
        processing_class=tokenizer,
    )
