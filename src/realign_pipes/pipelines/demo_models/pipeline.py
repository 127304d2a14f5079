from kedro.pipeline import Node, Pipeline

from realign_pipes.pipelines.demo_models.nodes import make_aligned, make_reference


def create_pipeline() -> Pipeline:
    """Parameters -> reference_model -> aligned_model."""
    return Pipeline(
        [
            Node(
                make_reference,
                inputs=["params:demo_models", "params:folders", "params:tracking"],
                outputs="reference_model",
                name="make_reference",
            ),
            Node(
                make_aligned,
                inputs=["params:demo_models", "params:folders", "params:tracking", "reference_model"],
                outputs="aligned_model",
                name="make_aligned",
            ),
        ],
        tags="demo_models",
    )
