"""data_prep: what the models are calibrated, trained and evaluated on."""

from realign_pipes.pipelines.data_prep.pipeline import create_pipeline

__all__ = ["create_pipeline"]
