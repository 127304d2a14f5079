"""Stage trra: one realigned checkpoint for each alpha, and one for each further round of TrRa-iter."""

from pathlib import Path
from typing import Any

from realign_pipes.parameters import Launcher, Teachers, TrRa


def train_students(
    parameters: TrRa,
    teachers: Teachers,
    launcher: Launcher,
    reference_model: Path,
    aligned_model: Path,
    calibration_set: Any,
    teacher_cache: Path,
    work_dir: Path,
) -> dict[str, Path]:
    """Checkpoints by alpha and name (`1.5/trra-1.5`, `1.5/trra-iter1-1.5`), of all alphas or of `only_alpha`.

    One that an earlier run finished is not trained again.
    """
    from realign_pipes.launcher import run_job
    from realign_pipes.realignment.trra import make_students

    return run_job(
        make_students,
        launcher,
        work_dir / "launch" / "trra",
        training=parameters,
        work=work_dir / "trra",
        reference=reference_model,
        aligned=aligned_model,
        examples=calibration_set,
        parameters=parameters,
        teachers=teachers,
        teacher_cache=teacher_cache,
    )
