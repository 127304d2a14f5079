"""Several processes for one stage: `accelerate launch` for a job, then its result in this process.

What a job makes lies in its work folder, where it is found finished when the same call comes again. So a node makes
one call twice: in the processes that it starts (they run `realign_pipes.launch`), and then here, where nothing is left
to do but to return the paths.
"""

import ctypes
import gc
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import yaml
from pydantic import BaseModel

from realign_pipes.parameters import Launcher, Training
from realign_pipes.resume import atomic_path

logger = logging.getLogger(__name__)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class LaunchError(RuntimeError):
    """The processes of a stage failed. What they said stands above on the same standard error."""


def run_job(
    job: Callable[..., Result],
    launcher: Launcher,
    folder: Path,
    *,
    training: Training | None = None,
    **arguments: Any,
) -> Result:
    """`job(**arguments)`, in as many processes as `launcher` says, which read it from `folder` (<work>/launch/<stage>).

    `training` has the parameters of the training that the job does, if it does one. Arguments are data sets, and
    parameter models and paths, alone or in a dictionary. ValueError before anything runs for a launcher that does not
    fit; LaunchError if the processes fail.
    """
    settings = _check(launcher, training)
    if launcher.num_processes > 1 or launcher.config_file is not None:
        _launch(launcher, settings, write_job(job, folder, arguments))
        shutil.rmtree(folder)
    return job(**arguments)


def write_job(job: Callable[..., Any], folder: Path, arguments: dict[str, Any]) -> Path:
    """The file in `folder` from which `realign_pipes.launch` does the job; data sets are saved beside it."""
    from datasets import Dataset

    with atomic_path(folder) as temporary:
        temporary.mkdir()
        resolved = {}
        for name, value in arguments.items():
            if isinstance(value, Dataset):
                value.save_to_disk(temporary / name)
                resolved[name] = _plain(folder / name)  # where the rename puts it
            else:
                resolved[name] = _plain(value)
        (temporary / "job.json").write_text(json.dumps({"job": job.__name__, "arguments": resolved}, indent=1))
    return folder / "job.json"


def _plain(value: Any) -> Any:
    """As JSON has it; paths are absolute."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return str(value.absolute())


def _check(launcher: Launcher, training: Training | None) -> dict[str, Any]:
    """accelerate's configuration. ValueError, before anything runs, for what cannot work."""
    if training is not None and training.batch_size % (training.micro_batch_size * launcher.num_processes):
        raise ValueError(
            f"batch_size {training.batch_size} is no multiple of micro_batch_size {training.micro_batch_size} times "
            f"launcher.num_processes {launcher.num_processes}. Change one of the three."
        )
    if launcher.config_file is None:
        return {}
    settings = yaml.safe_load(launcher.config_file.read_text())
    kind = settings.get("distributed_type")
    if kind not in ("MULTI_GPU", "FSDP"):
        raise ValueError(f"{launcher.config_file}: distributed_type {kind} is not supported. Choose MULTI_GPU (data "
                         "parallel; on CPUs too) or FSDP.")  # fmt: skip
    if kind == "FSDP":
        fsdp = settings.get("fsdp_config", {})
        for name, wanted in {"fsdp_version": 2, "fsdp_cpu_ram_efficient_loading": False}.items():
            if fsdp.get(name) != wanted:
                raise ValueError(f"{launcher.config_file}: fsdp_config.{name} is {fsdp.get(name)} and must be "
                                 f"{wanted}, as in conf/accelerate/fsdp2.yaml.")  # fmt: skip
    machines = settings.get("num_machines", 1)
    if launcher.num_processes % machines:
        raise ValueError(f"launcher.num_processes {launcher.num_processes} is no multiple of the {machines} machines "
                         f"in {launcher.config_file}.")  # fmt: skip
    return settings


def _launch(launcher: Launcher, settings: dict[str, Any], job: Path) -> None:
    """Run the job in its own processes and wait for them. LaunchError if they fail."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # what earlier nodes left to this process
    options = ["--num_processes", str(launcher.num_processes)]
    if launcher.config_file is not None:
        options += ["--config_file", str(launcher.config_file)]
    else:
        options += ["--multi_gpu", "--num_machines", "1", "--main_process_port", "0"]  # a free one
        options += ["--mixed_precision", "no", "--dynamo_backend", "no"]  # trainings choose bfloat16 themselves
    arguments = [*options, "-m", "realign_pipes.launch", str(job.absolute())]
    if settings.get("num_machines", 1) > 1:
        logger.info("On each of the other machines, with its own --machine_rank, run: %s",
                    shlex.join(["accelerate", "launch", "--machine_rank", "1", *arguments]))  # fmt: skip
    source = str(Path(__file__).parents[1])
    path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        preexec_fn=end_with_parent,
        close_fds=False,  # they hold the run's lock as long as they live
        check=False,
    )
    if process.returncode:
        raise LaunchError(
            f"the {launcher.num_processes} processes of the stage {job.parent.name} ended with exit code "
            f"{process.returncode}. What stopped them is said above; the same run goes on from what they finished in "
            f"{job.parents[2]}."
        )


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent is no more, so that no rank writes on alone. On Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
