from kedro.pipeline import Node, Pipeline

from realign_pipes.pipelines.trra.nodes import train_students


def create_pipeline() -> Pipeline:
    """teacher_cache + calibration_set + both models -> trra_checkpoints."""
    return Pipeline(
        [
            Node(
                train_students,
                inputs=[
                    "params:trra",
                    "params:teachers",
                    "params:models",
                    "params:launcher",
                    "params:folders",
                    "params:tracking",
                    "reference_model",
                    "aligned_model",
                    "calibration_set",
                    "teacher_cache",
                ],
                outputs="trra_checkpoints",
                name="train_students",
            )
        ],
        tags="trra",
    )
