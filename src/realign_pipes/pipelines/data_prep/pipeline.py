"""data_prep: what the models are calibrated, trained and evaluated on."""

from kedro.pipeline import Node, Pipeline

from realign_pipes.pipelines.data_prep.nodes import (
    collect_samples,
    make_evaluation_set,
    make_preference_pairs,
    make_short_solutions,
    select_calibration,
)


def create_pipeline() -> Pipeline:
    """Both models → calibration_samples → calibration_set, short_solutions, preference_pairs, evaluation_set."""
    return Pipeline(
        [
            Node(
                collect_samples,
                inputs=[
                    "params:data_prep",
                    "params:alpha_sweep",
                    "params:models",
                    "params:generation",
                    "params:folders",
                    "reference_model",
                    "aligned_model",
                ],
                outputs="calibration_samples",
                name="collect_samples",
            ),
            Node(
                select_calibration,
                inputs=["params:data_prep", "calibration_samples"],
                outputs="calibration_set",
                name="select_calibration",
            ),
            Node(
                make_short_solutions,
                inputs=["params:data_prep", "params:models", "reference_model", "calibration_samples"],
                outputs="short_solutions",
                name="make_short_solutions",
            ),
            Node(
                make_preference_pairs,
                inputs=["params:data_prep", "params:models", "reference_model", "calibration_samples"],
                outputs="preference_pairs",
                name="make_preference_pairs",
            ),
            Node(
                make_evaluation_set,
                inputs=["params:data_prep", "params:models", "reference_model", "calibration_samples"],
                outputs="evaluation_set",
                name="make_evaluation_set",
            ),
        ],
        tags="data_prep",
    )
