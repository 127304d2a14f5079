from realign_pipes.pipelines.demo_models.pipeline import create_pipeline

__all__ = ["create_pipeline"]
