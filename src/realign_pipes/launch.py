"""One process of a stage that runs in several: `accelerate launch … -m realign_pipes.launch <job.json>`.

`realign_pipes.launcher` writes the file, starts the processes of its own machine, and says the command for others.
"""

import inspect
import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import DistributedType
from datasets import Dataset, load_from_disk
from pydantic import TypeAdapter

from realign_pipes.evaluation.sweep import measure
from realign_pipes.launcher import end_with_parent
from realign_pipes.realignment.inra.training import make_adapter
from realign_pipes.realignment.teachers import make_caches
from realign_pipes.realignment.training import uses_fsdp
from realign_pipes.realignment.trra import make_students

JOBS: dict[str, Callable[..., Any]] = {job.__name__: job for job in (make_caches, make_students, make_adapter, measure)}

PATIENCE = timedelta(hours=6)
"""How long a process waits for the others, which may have longer completions to decode."""


def resolve(job: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Plain values as the job's type annotations want them. Pydantic raises ValidationError for what does not fit."""
    types = {name: parameter.annotation for name, parameter in inspect.signature(job).parameters.items()}
    return {
        name: load_from_disk(value) if types[name] is Dataset else TypeAdapter(types[name]).validate_python(value)
        for name, value in arguments.items()
    }


def main(files: list[Path]) -> None:
    """Do this process's part of the jobs in `files`, one after the other."""
    end_with_parent()
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    state = Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[patience]).state
    if state.num_processes != int(os.environ["WORLD_SIZE"]):
        raise RuntimeError(f"{os.environ['WORLD_SIZE']} processes were started, but accelerate sees "
                           f"{state.num_processes} on {state.device}.")  # fmt: skip
    if uses_fsdp() and state.distributed_type != DistributedType.FSDP:
        raise ValueError(f"FSDP was asked for, but accelerate does not use it on {state.device}: it needs GPUs. "
                         "Choose conf/accelerate/ddp.yaml.")  # fmt: skip
    for file in files:
        description = json.loads(file.read_text())
        job = JOBS[description["job"]]
        job(**resolve(job, description["arguments"]))
        state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
