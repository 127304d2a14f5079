"""Stage trra: one realigned checkpoint for each alpha, and one for each further round of TrRa-iter."""

from pathlib import Path
from typing import Any

from realign_pipes.parameters import Teachers, TrRa


def train_students(
    parameters: TrRa,
    teachers: Teachers,
    reference_model: Path,
    aligned_model: Path,
    calibration_set: Any,
    teacher_cache: Path,
    work_dir: Path,
) -> dict[str, Path]:
    """Checkpoints by alpha and name (`1.5/trra-1.5`, `1.5/trra-iter1-1.5`), of all alphas or of `only_alpha`.

    One that an earlier run finished is not trained again.
    """
    from realign_pipes.realignment.teachers import FusedTeachers
    from realign_pipes.realignment.trra import Realigner

    fused = FusedTeachers(
        reference_model, aligned_model, calibration_set, teachers=teachers, teacher_cache=teacher_cache
    )
    realigner = Realigner(fused, parameters=parameters, work=work_dir / "trra")
    checkpoints = {}
    for alpha in parameters.alphas:
        if parameters.only_alpha not in (None, alpha):
            continue
        aligned = aligned_model
        for iteration, name in enumerate(parameters.checkpoint_names(alpha)):
            aligned = checkpoints[name] = realigner.realign(Path(name).name, float(alpha), iteration, aligned)
    return checkpoints
