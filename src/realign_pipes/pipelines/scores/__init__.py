"""Stage scores: what graders say of the sweep's completions."""

from realign_pipes.pipelines.scores.pipeline import create_pipeline

__all__ = ["create_pipeline"]
