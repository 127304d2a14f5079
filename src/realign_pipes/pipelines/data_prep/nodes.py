"""Nodes of data_prep: completions to calibrate on, the training sets made from them, and the evaluation set."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from realign_pipes.parameters import DataPrep

if TYPE_CHECKING:
    from datasets import Dataset
else:
    Dataset = Any  # Kedro evaluates these annotations; importing `datasets` for them would take a second


def collect_samples(parameters: DataPrep, reference_model: Path, aligned_model: Path, work_dir: Path) -> Dataset:
    """Graded completions of the calibration problems, sampled from the reference or read from disk.

    The first node of a realignment: so it checks here that the two models fit together.
    """
    from realign_pipes.data_prep import samples
    from realign_pipes.realignment.checkpoints import check_pair

    check_pair(reference_model, aligned_model)
    return samples.collect_samples(parameters, reference_model, work_dir / "data_prep")


def select_calibration(parameters: DataPrep, calibration_samples: Dataset) -> Dataset:
    """The right completions of a wanted length, the longest of each problem or all of them."""
    from realign_pipes.data_prep import calibration

    return calibration.select_calibration(calibration_samples, parameters.calibration)


def make_short_solutions(parameters: DataPrep, reference_model: Path, calibration_samples: Dataset) -> Dataset:
    """Solutions of the right completions without their thinking, for the SFT of InRa's adapter."""
    from realign_pipes.data_prep import adapter_data

    return adapter_data.make_short_solutions(parameters, reference_model, calibration_samples)


def make_preference_pairs(reference_model: Path, calibration_samples: Dataset) -> Dataset:
    """Short right completions against long or wrong ones, for the DPO of InRa's adapter."""
    from realign_pipes.data_prep import adapter_data

    return adapter_data.make_preference_pairs(reference_model, calibration_samples)


def make_evaluation_set(parameters: DataPrep, reference_model: Path, calibration_samples: Dataset) -> Dataset:
    """Problems of every evaluation task, none of them among those of the calibration."""
    from realign_pipes.data_prep import evaluation_set

    return evaluation_set.make_evaluation_set(parameters, reference_model, calibration_samples)
