"""data_prep: the calibration set and the evaluation set."""

from realign_pipes.pipelines.data_prep.pipeline import create_pipeline

__all__ = ["create_pipeline"]
