from kedro.pipeline import Node, Pipeline

from realign_pipes.pipelines.dialogue_models.nodes import make_aligned, make_reference, write_dialogues


def create_pipeline() -> Pipeline:
    """Parameters → six sets of dialogues → reference_model → aligned_model.

    The sets are files that data_prep reads by their paths, so they have to be there before the models are.
    """
    names = ("calibration", "replies", "pairs", "questions", "requests", "conversations")
    dialogues = [f"dialogue_{name}" for name in names]
    return Pipeline(
        [
            Node(write_dialogues, inputs="params:dialogue_models", outputs=dialogues, name="write_dialogues"),
            Node(
                make_reference,
                inputs=["params:dialogue_models", "params:folders", "params:tracking", *dialogues],
                outputs="reference_model",
                name="make_reference",
            ),
            Node(
                make_aligned,
                inputs=["params:dialogue_models", "params:folders", "params:tracking", "reference_model"],
                outputs="aligned_model",
                name="make_aligned",
            ),
        ],
        tags="dialogue_models",
    )
