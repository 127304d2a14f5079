"""data_prep: the calibration set and the evaluation set."""

from kedro.pipeline import Node, Pipeline

from realign_pipes.pipelines.data_prep.nodes import collect_samples, make_evaluation_set, select_calibration


def create_pipeline() -> Pipeline:
    """Both models → calibration_samples → calibration_set, evaluation_set."""
    return Pipeline(
        [
            Node(
                collect_samples,
                inputs=["params:data_prep", "reference_model", "aligned_model", "work_dir"],
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
                make_evaluation_set,
                inputs=["params:data_prep", "reference_model", "calibration_samples"],
                outputs="evaluation_set",
                name="make_evaluation_set",
            ),
        ],
        tags="data_prep",
    )
