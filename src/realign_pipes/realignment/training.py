"""What every training here shares: arguments for Transformers' Trainer, bar, curves, and going on where it stopped."""

import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from dvclive import Live
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from realign_pipes.parameters import Training
from realign_pipes.progress import Advance, progress_bar
from realign_pipes.resume import explain_full_disk

CURVES = "curves"
"""The folder of a training's curves, in its work folder and then in its checkpoint."""


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


class CurvesCallback(TrainerCallback):
    """Curves of a training in DVCLive's files, one `plots/metrics/<name>.tsv` each in `folder`.

    What the trainer logs (loss, gradient norm, learning rate, …), and with it `tokens_per_second` (input tokens since
    the step logged before) and `memory_mib` (the peak so far: of the GPU where there is one, else resident). A resumed
    training first writes the steps before it again, from the state that it goes on from.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.live = Live(str(self.folder), report=None, save_dvc_exp=False, dvcyaml=None)
        for logged in state.log_history:
            self._write(logged, logged["step"])
        self.tokens, self.time = state.num_input_tokens_seen, time.perf_counter()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        if "loss" not in logs:  # the summary at the end
            return
        now = time.perf_counter()
        speed = (state.num_input_tokens_seen - self.tokens) / (now - self.time)
        self.tokens, self.time = state.num_input_tokens_seen, now
        state.log_history[-1].update(tokens_per_second=speed, memory_mib=_peak_memory())
        self._write(state.log_history[-1], state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.live.end()

    def _write(self, logged: dict[str, Any], step: int) -> None:
        self.live.step = step
        for name, value in logged.items():
            if name not in ("step", "epoch", "num_input_tokens_seen"):
                self.live.log_metric(name, value)
        self.live.make_summary()


def _peak_memory() -> float:
    """MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident / (2**20 if sys.platform == "darwin" else 2**10)


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
        "include_num_input_tokens_seen": "all",
        "seed": parameters.seed,
        "data_seed": parameters.seed,
        "dataloader_pin_memory": device.type == "cuda",
        "report_to": "none",
        "disable_tqdm": True,
    }


def train(trainer: Trainer, description: str) -> None:
    """Run `trainer` with a bar, going on from the last complete checkpoint in its folder; curves go beside that folder.

    TrainingDivergedError if a gradient is not finite, DiskFullError if its state cannot be saved.
    """
    trainer.remove_callback(PrinterCallback)
    folder = Path(trainer.args.output_dir)
    trainer.add_callback(CurvesCallback(folder.with_name(CURVES)))
    with explain_full_disk(folder), progress_bar(description, trainer.args.max_steps) as advance:
        trainer.add_callback(ProgressCallback(advance))
        trainer.add_callback(FiniteGradients())
        last = last_complete_checkpoint(folder)
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
