"""What every training here shares: its arguments for Transformers' Trainer, its bar, and going on where it stopped."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from realign_pipes.parameters import Training
from realign_pipes.progress import Advance, progress_bar


class TrainingDivergedError(ArithmeticError):
    """The loss or the gradient became NaN or infinite."""


class ProgressCallback(TrainerCallback):
    """Moves a bar of `progress_bar` by one for each optimizer step; a resumed training starts where it left off."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.advance(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.advance(1)


class FiniteGradients(TrainerCallback):
    """Stops a training before gradients that are NaN or infinite reach the weights."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            raise TrainingDivergedError(
                f"the gradient of step {state.global_step + 1} is not finite. Checkpoints saved before it are in "
                f"{args.output_dir}, until a run with other parameters starts over."
            )


def trainer_arguments(parameters: Training, device: torch.device, folder: Path) -> dict[str, Any]:
    """Arguments for TrainingArguments and TRL's configs: AdamW, a cosine after a warm-up, bfloat16 where CUDA has it.

    `folder` holds the training state.
    """
    return {
        "output_dir": str(folder),
        "max_steps": parameters.steps,
        "per_device_train_batch_size": parameters.micro_batch_size,
        "gradient_accumulation_steps": parameters.batch_size // parameters.micro_batch_size,
        "learning_rate": parameters.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": math.ceil(parameters.warmup_ratio * parameters.steps),
        "weight_decay": parameters.weight_decay,
        "max_grad_norm": parameters.max_grad_norm,
        "activation_checkpointing": parameters.gradient_checkpointing,
        "use_cpu": device.type == "cpu",
        "bf16": device.type == "cuda" and torch.cuda.is_bf16_supported(),
        "save_steps": parameters.save_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "seed": parameters.seed,
        "data_seed": parameters.seed,
        "dataloader_pin_memory": device.type == "cuda",
        "report_to": "none",
        "disable_tqdm": True,
    }


def train(trainer: Trainer, description: str) -> None:
    """Run `trainer` with a bar, going on from the last complete checkpoint in its folder.

    TrainingDivergedError if a gradient is not finite.
    """
    trainer.remove_callback(PrinterCallback)
    with progress_bar(description, trainer.args.max_steps) as advance:
        trainer.add_callback(ProgressCallback(advance))
        trainer.add_callback(FiniteGradients())
        last = last_complete_checkpoint(Path(trainer.args.output_dir))
        trainer.train(resume_from_checkpoint=None if last is None else str(last))


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest of Trainer's `checkpoint-<step>` folders that was written to its end, None if there is none.

    Trainer writes its state file last: a checkpoint without a readable one was interrupted.
    """
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    return next((path for path in checkpoints if _is_complete(path)), None)


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True
