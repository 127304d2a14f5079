"""Nodes of data_prep: completions to calibrate on, the training sets made from them, and the evaluation set."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from realign_pipes.pipelines.data_prep.parameters import DataPrep, SampledCalibration
from realign_pipes.runtime.launch import Folders

if TYPE_CHECKING:
    from datasets import Dataset
else:
    Dataset = Any  # Kedro evaluates these annotations; importing `datasets` for them would take a second


def collect_samples(parameters: DataPrep, folders: Folders, reference_model: Path, aligned_model: Path) -> Dataset:
    """Graded completions of the calibration problems, sampled from the reference or read from disk.

    The first node of a realignment: so it checks here that the two models fit together, and that the evaluation's
    problems can be had.
    """
    from realign_pipes.data import samples
    from realign_pipes.data.problems import draw_problems
    from realign_pipes.models.load import check_pair

    check_pair(reference_model, aligned_model)
    for name, task in parameters.tasks.items():
        draw_problems(f"data_prep.tasks.{name}", name, task, parameters.seed)
    calibration, seed = parameters.calibration, parameters.seed
    if isinstance(calibration, SampledCalibration):
        work = folders.work / "data_prep"
        return samples.draw_samples(calibration.task, calibration.sampling, reference_model, seed=seed, work=work)
    return samples.read_samples(
        calibration.path,
        question_column=calibration.question_column,
        completion_column=calibration.completion_column,
        answer_column=calibration.answer_column,
        verifier=calibration.verifier,
        limit=calibration.limit,
        reference=reference_model,
        seed=seed,
    )


def select_calibration(parameters: DataPrep, calibration_samples: Dataset) -> Dataset:
    """The right completions of a wanted length, the longest of each problem or all of them."""
    from realign_pipes.data import calibration

    wanted = parameters.calibration
    return calibration.select_calibration(
        calibration_samples, keep=wanted.keep, min_tokens=wanted.min_tokens, max_tokens=wanted.max_tokens
    )


def make_short_solutions(parameters: DataPrep, reference_model: Path, calibration_samples: Dataset) -> Dataset:
    """Solutions of the right completions without their thinking, for the SFT of InRa's adapter."""
    from realign_pipes.data import adapter_data

    cut_share = parameters.short_solutions.cut_share
    return adapter_data.make_short_solutions(
        reference_model, calibration_samples, cut_share=cut_share, seed=parameters.seed
    )


def make_preference_pairs(reference_model: Path, calibration_samples: Dataset) -> Dataset:
    """Short right completions against long or wrong ones, for the DPO of InRa's adapter."""
    from realign_pipes.data import adapter_data

    return adapter_data.make_preference_pairs(reference_model, calibration_samples)


def make_evaluation_set(parameters: DataPrep, reference_model: Path, calibration_samples: Dataset) -> Dataset:
    """Problems of every evaluation task, none of them among those of the calibration."""
    from realign_pipes.data import evaluation_set

    return evaluation_set.make_evaluation_set(
        parameters.tasks, reference_model, calibration_samples, seed=parameters.seed
    )
