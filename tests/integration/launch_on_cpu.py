"""What a process of a launch runs in tests: several jobs, FSDP2 on CPUs, and a failure.

Each argument is the name of a job's class and its folder: `TrainStudents:/folder`. Starting processes takes longer than
what tests do in them, so one launch does many jobs. torch shards over gloo, but accelerate takes FSDP for accelerators
alone. With FAIL_AT=3, the second process finds a loss that is not a number in the third optimizer step.
"""

import os
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor

from realign_pipes.paper.trra import TrRaTrainer
from realign_pipes.pipelines.alpha_sweep.job import MeasureCandidates
from realign_pipes.pipelines.inra.job import TrainAdapter
from realign_pipes.pipelines.teacher_logits.job import WriteCaches
from realign_pipes.pipelines.trra.job import TrainStudents
from realign_pipes.runtime.launch import joined_processes, run_written_job
from realign_pipes.runtime.training import FiniteGradients, uses_fsdp

JOBS = {job.__name__: job for job in (WriteCaches, TrainStudents, TrainAdapter, MeasureCandidates)}

initialise, compute_loss = AcceleratorState.__init__, TrRaTrainer.compute_loss
look_at_gradients = FiniteGradients.on_pre_optimizer_step


def with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU and uses_fsdp():
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin or FullyShardedDataParallelPlugin()


def with_failure(self, model, inputs, **kwargs):
    if os.environ.get("FAIL_AT") == str(self.state.global_step + 1) and self.accelerator.process_index == 1:
        signal = self.teacher.signal

        def broken(batch):
            found = signal(batch)
            found.aligned_hidden[:] = torch.nan
            return found

        self.teacher.signal = broken
    return compute_loss(self, model, inputs, **kwargs)


def check_sharded(self, args, state, control, **kwargs):
    assert all(isinstance(parameter, DTensor) for parameter in kwargs["model"].parameters()) == uses_fsdp()
    look_at_gradients(self, args, state, control, **kwargs)


AcceleratorState.__init__ = with_fsdp
TrRaTrainer.compute_loss = with_failure
FiniteGradients.on_pre_optimizer_step = check_sharded

if __name__ == "__main__":
    with joined_processes():
        for argument in sys.argv[1:]:
            name, folder = argument.split(":")
            run_written_job(JOBS[name], Path(folder))
