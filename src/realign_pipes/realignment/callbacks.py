"""Pieces that every use of Transformers' Trainer here shares: its progress bar, and finding where to go on."""

import json
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from realign_pipes.progress import Advance


class ProgressCallback(TrainerCallback):
    """Moves a bar of `progress_bar` by one for each optimizer step; a resumed training starts where it left off."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.advance(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.advance(1)


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
