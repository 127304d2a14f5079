"""What all trainers here share: their saved states hold the weights that are trained, and not the frozen ones."""

from typing import Any

import torch
from transformers import Trainer


class SavesTrainedWeights(Trainer):
    """Transformers' Trainer whose checkpoints have only the weights that require a gradient.

    For InRa's adapter or LoRA matrices on a model of billions of weights these are a few percent. A training resumes
    from them with the frozen weights that its model was loaded with. Under FSDP, Trainer saves shards of all weights
    beside them.
    """

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        whole = self.model.state_dict() if state_dict is None else state_dict
        trained = [name for name, weight in self.model.named_parameters() if weight.requires_grad]
        # Under FSDP, only the main process has the weights.
        super()._save(output_dir, {name: whole[name] for name in trained if name in whole})

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Trainer's, which would name every frozen weight as missing."""
        trained = {name for name, weight in self.model.named_parameters() if weight.requires_grad}
        missing = [name for name in load_result.missing_keys if name in trained]
        super()._issue_warnings_after_load(type(load_result)(missing, load_result.unexpected_keys))
