from realign_pipes.pipelines.inra.pipeline import create_pipeline

__all__ = ["create_pipeline"]
