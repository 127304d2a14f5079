from realign_pipes.pipelines.teacher_logits.pipeline import create_pipeline

__all__ = ["create_pipeline"]
