"""What all trainings here share: arguments for Transformers' Trainer, a progress bar, curves, and resuming.

Trainings run in one process, or in those of `accelerate launch`: data parallel, or sharded by FSDP2.
"""

import json
import math
import resource
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from datasets import Dataset
from dvclive import Live
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from realign_pipes.errors import InputError
from realign_pipes.paper.trra import TrainingDivergedError
from realign_pipes.runtime.files import explain_full_disk
from realign_pipes.runtime.parameters import Training
from realign_pipes.runtime.progress import Advance, progress_bar
from realign_pipes.runtime.tracking import NOT_TRACKED, Tracking, training_run

CURVES = "curves"
"""The folder of a training's curves, in its work folder and then in its checkpoint."""
FIRST = "sft"
"""The folder in a checkpoint that was trained twice, which has the curves of the first training, an SFT."""


class ProgressCallback(TrainerCallback):
    """Moves a bar of `progress_bar` by one for each optimizer step; a resumed training starts where it left off."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.advance(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.advance(1)


class FiniteGradients(TrainerCallback):
    """Stops a training before gradients that are NaN or infinite reach the weights."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if isinstance(norm, DTensor):  # of sharded gradients
            norm = norm.full_tensor()
        if not torch.isfinite(norm):
            raise TrainingDivergedError(
                f"the gradient of step {state.global_step + 1} is not finite. The checkpoints before it are in "
                f"{args.output_dir}; a run with other parameters removes them."
            )


class CurvesCallback(TrainerCallback):
    """Curves of a training in DVCLive's files, one `plots/metrics/<name>.tsv` each in `folder`.

    They show what the trainer logs (loss, gradient norm, learning rate, …), `train_seconds` (wall time of the training
    so far), `tokens_per_second` (input tokens since the last logged step) and `memory_mib` (the peak so far: of the GPU
    if there is one, else resident). A resumed training first rewrites the curves of the steps before it from its saved
    state; its `train_seconds` continue from there, so that every step counts once, however often it was interrupted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.live = Live(str(self.folder), report=None, save_dvc_exp=False, dvcyaml=None)
        for logged in state.log_history:
            self._write(logged, logged["step"])
        self.tokens, self.time = state.num_input_tokens_seen, time.perf_counter()
        before = [logged["train_seconds"] for logged in state.log_history if "train_seconds" in logged]
        self.start = self.time - (before[-1] if before else 0.0)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        if "loss" not in logs:  # the summary at the end
            return
        now = time.perf_counter()
        speed = (state.num_input_tokens_seen - self.tokens) / (now - self.time)
        self.tokens, self.time = state.num_input_tokens_seen, now
        state.log_history[-1].update(train_seconds=now - self.start, tokens_per_second=speed, memory_mib=_peak_memory())
        self._write(state.log_history[-1], state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # The steps after the last logged one count too; the summary has the latest value of each curve.
        self.live.summary["train_seconds"] = time.perf_counter() - self.start
        self.live.make_summary()  # type: ignore[no-untyped-call]
        self.live.end()  # type: ignore[no-untyped-call]  # of dvclive
        if (repository := self.live._dvc_repo) is not None:  # dvclive leaves its databases and git's packs open
            repository.close()

    def _write(self, logged: dict[str, Any], step: int) -> None:
        self.live.step = step
        for name, value in logged.items():
            if name not in ("step", "epoch", "num_input_tokens_seen", "num_tokens"):  # TRL's, which restarts
                self.live.log_metric(name, value)
        self.live.make_summary()  # type: ignore[no-untyped-call]


def training_seconds(checkpoint: Path) -> float | None:
    """Wall time of the trainings that left their curves in a checkpoint; None for one that was trained elsewhere."""
    summary = checkpoint / CURVES / "metrics.json"
    if not summary.exists():
        return None
    seconds: float | None = json.loads(summary.read_text()).get("train_seconds")  # older versions did not note it
    before = training_seconds(checkpoint / FIRST)
    return seconds if seconds is None or before is None else seconds + before


def _peak_memory() -> float:
    """MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident / (2**20 if sys.platform == "darwin" else 2**10)


def uses_fsdp() -> bool:
    """Whether `accelerate launch` asked for parameters that are sharded over the processes."""
    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def student_device() -> torch.device:
    """Where a model is loaded to be trained. FSDP moves it from the CPU to the accelerator part by part."""
    return torch.device("cpu") if uses_fsdp() else PartialState().device


def training_state(work: Path) -> Path:
    """The folder in `work` for the state of an unfinished training. What FSDP writes can only be read under FSDP."""
    return work / ("trainer_fsdp" if uses_fsdp() else "trainer")


def in_training_order(examples: Dataset, parameters: Training) -> Dataset:
    """The `steps * batch_size` examples of a training in order: one permutation after another, drawn with the seed.

    In this order (`train_sampling_strategy="sequential"`), every optimizer step has the same examples whatever the
    number of processes and micro-batches.
    """
    random = np.random.default_rng(parameters.seed)
    total = parameters.steps * parameters.batch_size
    epochs = [random.permutation(len(examples)) for _ in range(math.ceil(total / len(examples)))]
    return examples.select(np.concatenate(epochs)[:total])


def uses_bf16(parameters: Training) -> bool:
    """Whether a training autocasts to bfloat16 on this device."""
    if parameters.bf16 is not None:
        return parameters.bf16
    device: torch.device = PartialState().device
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def matmul_dtype(name: Literal["auto", "float32", "bfloat16"], parameters: Training) -> torch.dtype:
    """In which dtype the loss multiplies: `auto` is bfloat16 in a training that autocasts to it on a GPU.

    The states that enter are then bfloat16's in all but name, and a GPU multiplies them many times faster.
    """
    if name == "auto":
        name = "bfloat16" if uses_bf16(parameters) and PartialState().device.type != "cpu" else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def trainer_arguments(parameters: Training, folder: Path, tracking: Tracking = NOT_TRACKED) -> dict[str, Any]:
    """Arguments for TrainingArguments and TRL's configs: the optimizer, and a cosine after a warm-up.

    `folder` holds the training state; the folder that it is in names the tracker's run. Examples come as they are
    ordered, so give the trainer those of `in_training_order`. ValueError if the processes cannot share a batch evenly.
    """
    state = PartialState()
    together = parameters.micro_batch_size * state.num_processes
    if parameters.batch_size % together:
        raise InputError(f"batch_size {parameters.batch_size} is not a multiple of micro_batch_size "
                         f"{parameters.micro_batch_size} times {state.num_processes} processes.")  # fmt: skip
    device = state.device
    return {
        "output_dir": str(folder),
        "max_steps": parameters.steps,
        "per_device_train_batch_size": parameters.micro_batch_size,
        "gradient_accumulation_steps": parameters.batch_size // together,
        "train_sampling_strategy": "sequential",
        "learning_rate": parameters.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": math.ceil(parameters.warmup_ratio * parameters.steps),
        "weight_decay": parameters.weight_decay,
        "max_grad_norm": parameters.max_grad_norm,
        "activation_checkpointing": parameters.gradient_checkpointing,
        "ddp_find_unused_parameters": False,
        "use_cpu": device.type == "cpu",
        "bf16": uses_bf16(parameters),
        "optim": parameters.optim,
        "save_steps": parameters.save_steps,
        "save_total_limit": 1,  # an older state is removed only after the newer one is complete
        "logging_steps": max(1, parameters.steps // 100),  # a curve of about a hundred points
        "include_num_input_tokens_seen": "all",
        "seed": parameters.seed,
        "data_seed": parameters.seed,
        "dataloader_pin_memory": device.type == "cuda",
        **training_run(tracking, folder.parent),
        "disable_tqdm": True,
    }


def train(trainer: Trainer, description: str) -> dict[str, torch.Tensor]:
    """Run `trainer`, resuming from the last complete checkpoint in its folder; the trained model's whole state dict.

    The main process shows a bar and writes curves beside the trainer's folder. Raises TrainingDivergedError if a
    gradient is not finite, DiskFullError if the trainer's state cannot be saved.
    """
    trainer.remove_callback(PrinterCallback)
    folder = Path(trainer.args.output_dir)
    with ExitStack() as stack:
        stack.enter_context(explain_full_disk(folder))
        if trainer.is_world_process_zero():
            trainer.add_callback(CurvesCallback(folder.with_name(CURVES)))
            advance = stack.enter_context(progress_bar(description, trainer.args.max_steps))
            trainer.add_callback(ProgressCallback(advance))
        trainer.add_callback(FiniteGradients())
        last = last_complete_checkpoint(folder)
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if "wandb" in trainer.args.report_to and trainer.is_world_process_zero():
        import wandb

        wandb.finish()  # Trainer leaves the run open, and the next training would report to it
    state: dict[str, torch.Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return state


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest of Trainer's `checkpoint-<step>` folders that was completely written, or None.

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
