from kedro.pipeline import Node, Pipeline

from realign_pipes.pipelines.inra.nodes import train_adapter


def create_pipeline() -> Pipeline:
    """reference_model + short_solutions, preference_pairs or the teachers -> inra_checkpoint."""
    return Pipeline(
        [
            Node(
                train_adapter,
                inputs=[
                    "params:inra",
                    "params:teachers",
                    "params:models",
                    "params:launcher",
                    "params:folders",
                    "params:tracking",
                    "reference_model",
                    "aligned_model",
                    "short_solutions",
                    "preference_pairs",
                    "calibration_set",
                    "teacher_cache",
                ],
                outputs="inra_checkpoint",
                name="train_adapter",
            )
        ],
        tags="inra",
    )
