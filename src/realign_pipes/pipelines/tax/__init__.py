from realign_pipes.pipelines.tax.pipeline import create_pipeline

__all__ = ["create_pipeline"]
