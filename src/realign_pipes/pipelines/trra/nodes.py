"""Stage trra: one realigned checkpoint for each alpha, and one for each further round of TrRa-iter."""

from pathlib import Path
from typing import Any

from realign_pipes.data.parameters import Models
from realign_pipes.pipelines.trra.parameters import TrRa
from realign_pipes.runtime.launch import Folders, Launcher, launch
from realign_pipes.runtime.tracking import Tracking
from realign_pipes.teachers.parameters import Teachers


def train_students(
    parameters: TrRa,
    teachers: Teachers,
    models: Models,
    launcher: Launcher,
    folders: Folders,
    tracking: Tracking,
    reference_model: Path,
    aligned_model: Path,
    calibration_set: Any,
    teacher_cache: Path,
) -> dict[str, Path]:
    """Checkpoints by alpha and name (`1.5/trra-1.5`, `1.5/trra-iter1-1.5`), of all alphas or of `only_alpha`.

    One that an earlier run finished is not trained again.
    """
    from realign_pipes.datasets.arrow import folder_of
    from realign_pipes.pipelines.trra.job import Students, TrainStudents

    job = TrainStudents(
        parameters=parameters,
        teachers=teachers,
        reference=reference_model,
        aligned=aligned_model,
        examples=folder_of(calibration_set),
        teacher_cache=teacher_cache,
        chat_template=models.chat_template,
        attn_implementation=models.attn_implementation,
        work=folders.work / "trra",
        tracking=tracking,
    )
    return launch(job, Students, launcher, folders.work / "launch" / "trra", training=parameters).checkpoints
