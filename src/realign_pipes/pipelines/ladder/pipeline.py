"""ladder: adapters that stock vLLM serves side by side; alpha is the name of the model that a request asks for."""

from kedro.pipeline import Node, Pipeline

from realign_pipes.pipelines.ladder.nodes import describe_ladder, make_ladder


def create_pipeline() -> Pipeline:
    """Both models, and for students the calibration data -> ladder, ladder_readme. No stage of DVC, and in no other
    pipeline."""
    return Pipeline(
        [
            Node(
                make_ladder,
                inputs=[
                    "params:ladder",
                    "params:trra",
                    "params:teachers",
                    "params:models",
                    "params:generation",
                    "params:launcher",
                    "params:folders",
                    "params:tracking",
                    "reference_model",
                    "aligned_model",
                    "ladder_examples",
                    "ladder_teacher_cache",
                ],
                outputs="ladder",
                name="make_ladder",
            ),
            Node(
                describe_ladder,
                inputs=["params:models", "params:generation", "reference_model", "ladder"],
                outputs="ladder_readme",
                name="describe_ladder",
            ),
        ],
        tags="ladder",
    )
