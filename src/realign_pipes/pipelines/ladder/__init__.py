from realign_pipes.pipelines.ladder.pipeline import create_pipeline

__all__ = ["create_pipeline"]
