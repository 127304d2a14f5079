from realign_pipes.pipelines.dialogue_models.pipeline import create_pipeline

__all__ = ["create_pipeline"]
