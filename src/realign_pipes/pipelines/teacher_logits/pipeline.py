from kedro.pipeline import Node, Pipeline

from realign_pipes.pipelines.teacher_logits.nodes import cache_teachers


def create_pipeline() -> Pipeline:
    """calibration_set + both models -> teacher_cache."""
    return Pipeline(
        [
            Node(
                cache_teachers,
                inputs=[
                    "params:teachers",
                    "params:models",
                    "params:launcher",
                    "params:folders",
                    "reference_model",
                    "aligned_model",
                    "calibration_set",
                ],
                outputs=["teacher_cache", "teacher_cache_report"],
                name="cache_teachers",
            )
        ],
        tags="teacher_logits",
    )
