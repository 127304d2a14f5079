from realign_pipes.pipelines.push.pipeline import create_pipeline

__all__ = ["create_pipeline"]
