"""Stage teacher_logits: the final hidden states of both models for every completion token, once for all alphas."""

import logging
from pathlib import Path
from typing import Any

from realign_pipes.parameters import Launcher, Teachers

logger = logging.getLogger(__name__)


def cache_teachers(
    teachers: Teachers,
    launcher: Launcher,
    reference_model: Path,
    aligned_model: Path,
    calibration_set: Any,
    work_dir: Path,
) -> tuple[Path, dict[str, Any]]:
    """The folder of the two caches (`reference`, `aligned`), and a report of what they cost."""
    from realign_pipes.launcher import run_job
    from realign_pipes.realignment.teachers import make_caches

    folder, report = run_job(
        make_caches,
        launcher,
        work_dir / "launch" / "teacher_logits",
        work=work_dir,
        reference=reference_model,
        aligned=aligned_model,
        examples=calibration_set,
        teachers=teachers,
    )
    for name in report.keys() & {"reference", "aligned"}:
        logger.info(
            "%s: %d tokens, %d bytes a token, %.1f times smaller than full logits",
            name, report[name]["tokens"], report[name]["bytes_per_token"], report[name]["times_smaller"],
        )  # fmt: skip
    return folder, report
