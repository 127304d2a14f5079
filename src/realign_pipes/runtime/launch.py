"""A stage's job, run in this process or in several processes of `accelerate launch`.

A job is a Pydantic model with `run()`. Several processes get it as JSON: each of them is
`python -m <the job's module> <folder>`, reads `job.json` there and runs it; the main one writes `result.json`, which
`launch` reads. Errors that the user can fix come through `error.json`. A job names its data sets by their folders.
"""

import gc
import logging
import os
import shlex
import shutil
import subprocess
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, PositiveInt, field_validator

from realign_pipes.errors import InputError, UserError
from realign_pipes.runtime.files import atomic_path
from realign_pipes.runtime.parameters import Parameters, Training
from realign_pipes.runtime.processes import end_with_parent

if TYPE_CHECKING:
    from kedro.framework.context import KedroContext

logger = logging.getLogger(__name__)

PATIENCE = timedelta(hours=6)
"""How long a process waits for the others, which may take longer to decode their completions."""

Result = TypeVar("Result", bound=BaseModel)

AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]
"""A path that means the same in every process, whatever its working folder."""


class Launcher(Parameters):
    """parameters_launcher.yml: the processes of teacher_logits, trra, inra and alpha_sweep."""

    num_processes: PositiveInt
    """On all machines together. If there are several, `accelerate launch` starts them, one for each GPU."""
    config_file: Path | None
    """accelerate's configuration (conf/accelerate/), relative to the working folder: FSDP, several machines, …"""

    @field_validator("config_file")
    @classmethod
    def _is_a_file(cls, config_file: Path | None) -> Path | None:
        if config_file is not None and not config_file.is_file():
            raise ValueError(f"there is no file {config_file} in {Path.cwd()}. Give the path of a configuration of "
                             "accelerate, such as conf/accelerate/ddp.yaml, or null.")  # fmt: skip
        return config_file


class Folders(Parameters):
    """parameters_folders.yml: where a run works and keeps its records. These are folders, not data sets."""

    work: Path
    """State of unfinished work, and finished work that the catalog has yet to save. Safe to delete between runs."""
    logs: Path
    """A log of each run."""
    validation: Path
    """What Great Expectations found, one JSON file for each data set."""

    @classmethod
    def of_run(cls, context: "KedroContext") -> Self:
        """The folders of a run, for hooks; created if missing. (Nodes take `params:folders`.)"""
        folders = cls.model_validate(context.config_loader["parameters"]["folders"])
        for folder in (folders.work, folders.logs, folders.validation):
            folder.mkdir(parents=True, exist_ok=True)
        return folders


class LaunchError(UserError, RuntimeError):
    """The processes of a stage failed."""


class ProcessError(BaseModel):
    """A UserError of one of the processes."""

    message: str
    traceback: str


class ProcessTraceback(Exception):
    """The cause of a LaunchError: the traceback of the process, as text."""


class Job(BaseModel, ABC, Generic[Result]):
    """What a stage does in one or several processes. Its fields are parameters and paths (`AbsolutePath`).

    The module of a job ends with `if __name__ == "__main__": run_as_process(TheJob)`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    def run(self) -> Result:
        """Do this process's part of the work. Every process returns the same result."""


def launch(
    job: Job[Result], result: type[Result], launcher: Launcher, folder: Path, training: Training | None
) -> Result:
    """Run `job` in as many processes as `launcher` says; its result.

    `folder` (<work>/launch/<stage>) holds the job and its result, and is removed once the result has been read.
    `training` has the parameters of the job's training, if there is one. Raises ValueError, before anything runs, for a
    launcher that does not fit; LaunchError if a process fails, or if none of them wrote a result.
    """
    settings = check_launcher(launcher, training)
    if launcher.num_processes == 1 and launcher.config_file is None:
        return job.run()
    write_job(job, folder)
    start_processes(launcher, settings, type(job).__module__, folder)
    file = folder / "result.json"
    if not file.exists():
        raise LaunchError(f"the {launcher.num_processes} processes of the stage {folder.name} ended without an error, "
                          f"but wrote no result to {file}. Do all machines see this folder?")  # fmt: skip
    made = result.model_validate_json(file.read_text())
    shutil.rmtree(folder)
    return made


def write_job(job: Job[Any], folder: Path) -> None:
    """Recreate `folder` with only `job.json` in it: no result of an earlier launch."""
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        (temporary / "job.json").write_text(job.model_dump_json(indent=1))


def run_as_process(job: type[Job[Any]]) -> None:
    """The program of each process that `launch` starts: do the job in the folder that the command line names."""
    folder = Path(sys.argv[1])
    try:
        with joined_processes():
            run_written_job(job, folder)
    except Exception as error:
        file = folder / "error.json"
        if isinstance(error, UserError):
            with atomic_path(file) as temporary:
                found = ProcessError(message=str(error), traceback=traceback.format_exc())
                temporary.write_text(found.model_dump_json(indent=1))
        elif not file.exists():  # if there is one, another process failed first and wrote it
            raise
        os._exit(1)  # at once: others may be waiting for this process, and libraries print a lot when they exit


def run_written_job(job: type[Job[Any]], folder: Path) -> None:
    """Do this process's part of the job that `write_job` wrote; the main process writes `folder / result.json`."""
    from accelerate import PartialState

    result = job.model_validate_json((folder / "job.json").read_text()).run()
    if PartialState().is_main_process:
        with atomic_path(folder / "result.json") as temporary:
            temporary.write_text(result.model_dump_json(indent=1))


@contextmanager
def joined_processes() -> Iterator[None]:
    """Join the processes that `accelerate launch` started in a group, which they leave together after the block.

    RuntimeError if accelerate finds a different number of them; ValueError for FSDP without an accelerator.
    """
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.utils import DistributedType

    from realign_pipes.runtime.training import uses_fsdp

    end_with_parent()
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    state = Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[patience]).state
    if state.num_processes != int(os.environ["WORLD_SIZE"]):
        raise RuntimeError(f"{os.environ['WORLD_SIZE']} processes were started, but accelerate sees "
                           f"{state.num_processes} on {state.device}.")  # fmt: skip
    if uses_fsdp() and state.distributed_type != DistributedType.FSDP:
        raise InputError(f"FSDP was asked for, but accelerate does not use it on {state.device}: it needs GPUs. "
                         "Choose conf/accelerate/ddp.yaml.")  # fmt: skip
    yield
    state.wait_for_everyone()
    state.destroy_process_group()


def check_launcher(launcher: Launcher, training: Training | None) -> dict[str, Any]:
    """The content of accelerate's configuration, {} without one. ValueError for what cannot work."""
    if training is not None and training.batch_size % (training.micro_batch_size * launcher.num_processes):
        raise InputError(
            f"batch_size {training.batch_size} is not a multiple of micro_batch_size {training.micro_batch_size} times "
            f"launcher.num_processes {launcher.num_processes}. Change one of the three."
        )
    if launcher.config_file is None:
        return {}
    settings: dict[str, Any] = yaml.safe_load(launcher.config_file.read_text()) or {}
    kind = settings.get("distributed_type")
    if kind not in ("MULTI_GPU", "FSDP"):
        raise InputError(f"{launcher.config_file}: distributed_type {kind} is not supported. Choose MULTI_GPU (data "
                         "parallel; on CPUs too) or FSDP.")  # fmt: skip
    if kind == "FSDP":
        fsdp = settings.get("fsdp_config", {})
        for name, wanted in {"fsdp_version": 2, "fsdp_cpu_ram_efficient_loading": False}.items():
            if fsdp.get(name) != wanted:
                raise InputError(f"{launcher.config_file}: fsdp_config.{name} is {fsdp.get(name)} and must be "
                                 f"{wanted}, as in conf/accelerate/fsdp2.yaml.")  # fmt: skip
    machines = settings.get("num_machines", 1)
    if launcher.num_processes % machines:
        raise InputError(f"launcher.num_processes {launcher.num_processes} is not a multiple of the {machines} "
                         f"machines in {launcher.config_file}.")  # fmt: skip
    return settings


def start_processes(launcher: Launcher, settings: dict[str, Any], module: str, folder: Path) -> None:
    """Start the processes of this machine on the job in `folder` and wait for them. LaunchError if they fail."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # what earlier nodes left to this process
    options = ["--num_processes", str(launcher.num_processes)]
    if launcher.config_file is not None:
        options += ["--config_file", str(launcher.config_file)]
    else:
        options += ["--multi_gpu", "--num_machines", "1", "--main_process_port", "0"]  # a free one
        options += ["--mixed_precision", "no", "--dynamo_backend", "no"]  # trainings choose bfloat16 themselves
    arguments = [*options, "-m", module, str(folder.absolute())]
    if settings.get("num_machines", 1) > 1:
        logger.info("On each of the other machines, with its own --machine_rank, run: %s",
                    shlex.join(["accelerate", "launch", "--machine_rank", "1", *arguments]))  # fmt: skip
    source = str(Path(__file__).parents[2])
    path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.run(
        [sys.executable, "-m", __name__, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        preexec_fn=end_with_parent,
        close_fds=False,  # they hold the run's lock as long as they live
        check=False,
    )
    if process.returncode and (folder / "error.json").exists():
        found = ProcessError.model_validate_json((folder / "error.json").read_text())
        raise LaunchError(found.message) from ProcessTraceback(found.traceback)
    if process.returncode:
        raise LaunchError(
            f"the {launcher.num_processes} processes of the stage {folder.name} ended with exit code "
            f"{process.returncode}. Their own error is above. The same run resumes from what they finished in "
            f"{folder.parents[1]}."
        )


def accelerate_launch() -> None:
    """`accelerate launch` without its report on a failed process, which has already reported its own error."""
    from accelerate.commands.launch import main
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        main()
    except (ChildFailedError, subprocess.CalledProcessError):
        sys.exit(1)


if __name__ == "__main__":
    accelerate_launch()
