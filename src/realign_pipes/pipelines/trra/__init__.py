from realign_pipes.pipelines.trra.pipeline import create_pipeline

__all__ = ["create_pipeline"]
