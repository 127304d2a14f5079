"""Stage teacher_logits: the final hidden states of both models for every completion token, once for all alphas."""

import logging
from pathlib import Path
from typing import Any

from realign_pipes.data.parameters import Models
from realign_pipes.pipelines.teacher_logits.parameters import Teachers
from realign_pipes.runtime.launch import Folders, Launcher, launch

logger = logging.getLogger(__name__)


def cache_teachers(
    teachers: Teachers,
    models: Models,
    launcher: Launcher,
    folders: Folders,
    reference_model: Path,
    aligned_model: Path,
    calibration_set: Any,
) -> tuple[Path, dict[str, Any]]:
    """The folder of the two caches (`reference`, `aligned`), and a report of what they cost."""
    from realign_pipes.datasets.arrow import folder_of
    from realign_pipes.pipelines.teacher_logits.job import Caches, WriteCaches

    job = WriteCaches(
        teachers=teachers,
        reference=reference_model,
        aligned=aligned_model,
        examples=folder_of(calibration_set),
        attn_implementation=models.attn_implementation,
        work=folders.work,
    )
    made = launch(job, Caches, launcher, folders.work / "launch" / "teacher_logits", training=None)
    for name in made.report.keys() & {"reference", "aligned"}:
        logger.info(
            "%s: %d tokens, %d bytes a token, %.1f times smaller than full logits",
            name, made.report[name]["tokens"], made.report[name]["bytes_per_token"], made.report[name]["times_smaller"],
        )  # fmt: skip
    return made.folder, made.report
