"""What all trainers here share: one GPU for each process, and states that hold the trained weights alone."""

from typing import Any

import torch
from transformers import Trainer, TrainingArguments


class SavesTrainedWeights(Trainer):
    """Transformers' Trainer whose checkpoints have only the weights that require a gradient.

    For InRa's adapter or LoRA matrices on a model of billions of weights these are a few percent. A training resumes
    from them with the frozen weights that its model was loaded with. Under FSDP, Trainer saves shards of all weights
    beside them.

    It uses one GPU in each process. Trainer by itself would use all that a process sees, with `nn.DataParallel`: that
    multiplies the batch, and TRL's trainers refuse it. Several GPUs are several processes.
    """

    def __init__(self, *, args: TrainingArguments, **others: Any) -> None:
        args._n_gpu = min(args.n_gpu, 1)
        super().__init__(args=args, **others)

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
