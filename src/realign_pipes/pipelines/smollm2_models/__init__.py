from realign_pipes.pipelines.smollm2_models.pipeline import create_pipeline

__all__ = ["create_pipeline"]
