"""Stage inra: the reference with a trained layer adapter, whose alpha is chosen at generation."""

from pathlib import Path
from typing import Any

from realign_pipes.parameters import InRa, Launcher, Teachers


def train_adapter(
    parameters: InRa,
    teachers: Teachers,
    launcher: Launcher,
    reference_model: Path,
    aligned_model: Path,
    short_solutions: Any,
    preference_pairs: Any,
    calibration_set: Any,
    teacher_cache: Path,
    work_dir: Path,
) -> Path:
    """The InRa checkpoint, trained as `inra.method` says from one of the three data sets."""
    from realign_pipes.launcher import run_job
    from realign_pipes.realignment.inra.training import make_adapter

    return run_job(
        make_adapter,
        launcher,
        work_dir / "launch" / "inra",
        training=parameters,
        work=work_dir / "inra",
        reference=reference_model,
        aligned=aligned_model,
        parameters=parameters,
        teachers=teachers,
        short_solutions=short_solutions,
        preference_pairs=preference_pairs,
        calibration_set=calibration_set,
        teacher_cache=teacher_cache,
    )
