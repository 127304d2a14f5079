"""Stage plan: prints what a run will take, and keeps it as a table."""

import logging
import shutil
from pathlib import Path

from realign_pipes.errors import MissingFileError
from realign_pipes.generation.parameters import Generation
from realign_pipes.pipelines.alpha_sweep.parameters import AlphaSweep
from realign_pipes.pipelines.data_prep.parameters import DataPrep
from realign_pipes.pipelines.inra.parameters import InRa
from realign_pipes.pipelines.plan.parameters import Plan
from realign_pipes.pipelines.teacher_logits.parameters import Teachers
from realign_pipes.pipelines.trra.parameters import TrRa
from realign_pipes.runtime.launch import Folders, Launcher, check_launcher

logger = logging.getLogger(__name__)


def plan_run(
    parameters: Plan,
    data_prep: DataPrep,
    teachers: Teachers,
    trra: TrRa,
    inra: InRa,
    alpha_sweep: AlphaSweep,
    generation: Generation,
    launcher: Launcher,
    folders: Folders,
) -> str:
    """The plan of the stages from data_prep to reporting, as a table in Markdown with the warnings below it.

    MissingFileError if there is no config.json of the reference or the aligned model, InputError for accelerate's
    configuration if the stages would refuse it.
    """
    from realign_pipes.pipelines.plan.stages import Run

    for name, config in (("reference", parameters.reference), ("aligned", parameters.aligned)):
        if not config.is_file():
            raise MissingFileError(f"plan.{name}: there is no file {config} in {Path.cwd()}. Give the path of the "
                                   "model's config.json.")  # fmt: skip

    run = Run(
        plan=parameters,
        data_prep=data_prep,
        teachers=teachers,
        trra=trra,
        inra=inra,
        alpha_sweep=alpha_sweep,
        generation=generation,
        processes=launcher.num_processes,
        shards=check_launcher(launcher, None).get("distributed_type") == "FSDP",
    )
    text = run.table(free=shutil.disk_usage(_existing(folders.work)).free)
    logger.info("%s", text)
    return text


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return folder if folder.exists() else _existing(folder.absolute().parent)
