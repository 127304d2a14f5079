from realign_pipes.pipelines.turns.pipeline import create_pipeline

__all__ = ["create_pipeline"]
