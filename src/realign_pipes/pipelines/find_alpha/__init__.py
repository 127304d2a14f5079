from realign_pipes.pipelines.find_alpha.pipeline import create_pipeline

__all__ = ["create_pipeline"]
