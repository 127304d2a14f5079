from realign_pipes.pipelines.alpha_sweep.pipeline import create_pipeline

__all__ = ["create_pipeline"]
