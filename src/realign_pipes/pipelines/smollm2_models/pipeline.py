from kedro.pipeline import Node, Pipeline

from realign_pipes.pipelines.smollm2_models.nodes import convert_smollm2, make_aligned, make_reference, write_problems


def create_pipeline() -> Pipeline:
    """Parameters → smollm2_model, both sets of problems → reference_model → aligned_model.

    Both sets are files that data_prep reads by their paths, so they have to be there before the models are.
    """
    problems = ["calibration_problems", "evaluation_problems"]
    return Pipeline(
        [
            Node(
                convert_smollm2,
                inputs=["params:smollm2_models", "params:folders"],
                outputs="smollm2_model",
                name="convert_smollm2",
            ),
            Node(write_problems, inputs="params:smollm2_models", outputs=problems, name="write_problems"),
            Node(
                make_reference,
                inputs=["params:smollm2_models", "params:folders", "params:tracking", "smollm2_model", *problems],
                outputs="reference_model",
                name="make_reference",
            ),
            Node(
                make_aligned,
                inputs=["params:smollm2_models", "params:folders", "params:tracking", "reference_model", *problems],
                outputs="aligned_model",
                name="make_aligned",
            ),
        ],
        tags="smollm2_models",
    )
