"""Stage inra: the reference with a trained layer adapter, whose alpha is chosen at generation."""

from pathlib import Path
from typing import Any

from realign_pipes.parameters import InRa, Teachers


def train_adapter(
    parameters: InRa,
    teachers: Teachers,
    reference_model: Path,
    aligned_model: Path,
    short_solutions: Any,
    preference_pairs: Any,
    calibration_set: Any,
    teacher_cache: Path,
    work_dir: Path,
) -> Path:
    """The InRa checkpoint, trained as `inra.method` says from one of the three data sets."""
    from realign_pipes.realignment.inra.training import make_adapter

    return make_adapter(
        reference_model,
        aligned_model,
        parameters=parameters,
        teachers=teachers,
        short_solutions=short_solutions,
        preference_pairs=preference_pairs,
        calibration_set=calibration_set,
        teacher_cache=teacher_cache,
        work=work_dir / "inra",
    )
