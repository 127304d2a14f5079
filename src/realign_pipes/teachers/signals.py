"""The fused teacher with both models in memory, and the checks that any teacher needs.

What a teacher is (`Example`, `TeacherSignal`, `Teacher`) is defined where it is used, in `paper.trra`.
"""

import hashlib
import json
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from realign_pipes.errors import InputError
from realign_pipes.paper.trra import TeacherSignal, completion_hidden_states, decoder_inputs


def check_examples(examples: Dataset, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise ValueError unless this tokenizer made the `prompt_ids` of `examples` from their `prompt`.

    Only the first hundred are compared: with a different tokenizer, ids differ right away.
    """
    for row in examples.select(range(min(100, len(examples)))):
        if tokenizer(row["prompt"], add_special_tokens=False)["input_ids"] != row["prompt_ids"]:
            raise InputError(
                f"the calibration set was made with another tokenizer than the reference's: the prompt of {row['id']} "
                "has other token ids. Make it again: kedro run --pipeline data_prep"
            )


def fingerprint_examples(examples: Dataset) -> str:
    """SHA-256 (hex) of the ids and token ids of all examples, in order."""
    digest = hashlib.sha256()
    for row in examples.select_columns(["id", "prompt_ids", "completion_ids"]):
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


@torch.inference_mode()
def check_linear_head(model: PreTrainedModel, name: str) -> None:
    """Raise ValueError unless the model's logits are its final hidden states times its head.

    With a bias, soft-capping or a scale they are not, and cannot be mixed from hidden states.
    """
    token = torch.tensor([[0, 1, 2]], device=model.device)
    logits = model(input_ids=token).logits.float()
    hidden = model.get_decoder()(input_ids=token, use_cache=False).last_hidden_state
    linear = (hidden @ model.get_output_embeddings().weight.T).float()
    if not torch.allclose(logits, linear, rtol=1e-2, atol=1e-2 * logits.abs().max().item()):
        raise InputError(
            f"the {name} ({type(model).__name__}) does more than a matrix product after its final hidden states (a "
            "bias, soft-capping or a scale), which TrRa's loss over hidden states does not support."
        )


class OnlineTeacher:
    """Runs both models, which are on the batch's device, on every batch."""

    def __init__(self, reference: PreTrainedModel, aligned: PreTrainedModel) -> None:
        self.models = (reference, aligned)
        self.reference_head = reference.get_output_embeddings().weight.detach()
        self.aligned_head = aligned.get_output_embeddings().weight.detach()

    @torch.no_grad()
    def signal(self, batch: dict[str, Any]) -> TeacherSignal:
        """Hidden states for a batch of `collate` or `collate_flat`."""
        inputs = decoder_inputs(batch)
        return TeacherSignal(*(completion_hidden_states(model, batch["labels"], **inputs) for model in self.models))
