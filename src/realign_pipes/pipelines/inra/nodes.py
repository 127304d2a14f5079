"""Stage inra: a layer adapter for the reference."""

from pathlib import Path
from typing import Any

from realign_pipes.data.parameters import Models
from realign_pipes.pipelines.inra.parameters import InRa
from realign_pipes.runtime.launch import Folders, Launcher, launch
from realign_pipes.runtime.tracking import Tracking
from realign_pipes.teachers.parameters import Teachers


def train_adapter(
    parameters: InRa,
    teachers: Teachers,
    models: Models,
    launcher: Launcher,
    folders: Folders,
    tracking: Tracking,
    reference_model: Path,
    aligned_model: Path,
    short_solutions: Any,
    preference_pairs: Any,
    calibration_set: Any,
    teacher_cache: Path,
) -> Path:
    """The InRa checkpoint, trained as `inra.method` says from the data sets."""
    from realign_pipes.datasets.arrow import folder_of
    from realign_pipes.pipelines.inra.job import Adapter, TrainAdapter

    job = TrainAdapter(
        parameters=parameters,
        teachers=teachers,
        reference=reference_model,
        aligned=aligned_model,
        short_solutions=folder_of(short_solutions),
        preference_pairs=folder_of(preference_pairs),
        calibration_set=folder_of(calibration_set),
        teacher_cache=teacher_cache,
        chat_template=models.chat_template,
        attn_implementation=models.attn_implementation,
        work=folders.work / "inra",
        tracking=tracking,
    )
    return launch(job, Adapter, launcher, folders.work / "launch" / "inra", training=parameters).checkpoint
