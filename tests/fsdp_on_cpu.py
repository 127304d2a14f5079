"""`realign_pipes.launch` with FSDP2 on CPUs: torch shards over gloo, but accelerate takes FSDP for accelerators alone."""

import os
import sys
from pathlib import Path

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from realign_pipes import launch

initialise = AcceleratorState.__init__


def with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin or FullyShardedDataParallelPlugin()


AcceleratorState.__init__ = with_fsdp

if __name__ == "__main__":
    launch.main([Path(argument) for argument in sys.argv[1:]])
