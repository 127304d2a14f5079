"""Pipeline ladder: an adapter for each alpha, and the command that serves them."""

import logging
from pathlib import Path

from realign_pipes.data.parameters import Models
from realign_pipes.generation.parameters import Generation
from realign_pipes.pipelines.ladder.parameters import Ladder
from realign_pipes.pipelines.trra.parameters import TrRa
from realign_pipes.runtime.launch import Folders, Launcher, launch
from realign_pipes.runtime.tracking import Tracking
from realign_pipes.teachers.parameters import Teachers

logger = logging.getLogger(__name__)


def make_ladder(
    parameters: Ladder,
    trra: TrRa,
    teachers: Teachers,
    models: Models,
    generation: Generation,
    launcher: Launcher,
    folders: Folders,
    tracking: Tracking,
    reference_model: Path,
    aligned_model: Path,
    ladder_examples: Path,
    ladder_teacher_cache: Path,
) -> Path:
    """The folder with one adapter for each alpha. One that an earlier run finished is not made again."""
    from realign_pipes.pipelines.ladder.job import MadeLadder, MakeLadder

    job = MakeLadder(
        parameters=parameters,
        trra=trra,
        teachers=teachers,
        reference=reference_model,
        aligned=aligned_model,
        examples=ladder_examples,
        teacher_cache=ladder_teacher_cache,
        environment=generation.environment,
        chat_template=models.chat_template,
        attn_implementation=models.attn_implementation,
        work=folders.work / "ladder",
        students=folders.work / "trra",
        tracking=tracking,
    )
    training = None if parameters.method == "svd" else trra
    return launch(job, MadeLadder, launcher, folders.work / "launch" / "ladder", training=training).folder


def describe_ladder(models: Models, generation: Generation, reference_model: Path, ladder: Path) -> str:
    """README.md of the ladder's folder: the command that serves it, which is printed too, and what its rungs are."""
    from realign_pipes.serving.ladder import describe

    command, text = describe(ladder, reference_model, generation.environment, models.chat_template)
    logger.info("%s", command)
    return text
