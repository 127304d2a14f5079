from kedro.pipeline import Node, Pipeline

from realign_pipes.pipelines.find_alpha.nodes import draw_problems, search_alpha


def create_pipeline() -> Pipeline:
    """Both models, calibration data and inra_checkpoint -> found_alpha, found_checkpoint, search_figure."""
    return Pipeline(
        [
            Node(
                draw_problems,
                inputs=[
                    "params:find_alpha",
                    "params:data_prep",
                    "params:models",
                    "reference_model",
                    "calibration_samples",
                ],
                outputs=["search_problems", "confirming_problems"],
                name="draw_problems",
            ),
            Node(
                search_alpha,
                inputs=[
                    "params:find_alpha",
                    "params:alpha_sweep",
                    "params:data_prep",
                    "params:trra",
                    "params:inra",
                    "params:teachers",
                    "params:models",
                    "params:generation",
                    "params:launcher",
                    "params:folders",
                    "params:tracking",
                    "reference_model",
                    "aligned_model",
                    "inra_checkpoint",
                    "calibration_set",
                    "teacher_cache",
                    "search_problems",
                    "confirming_problems",
                    "evaluation_set",
                ],
                outputs=["found_alpha", "found_checkpoint", "search_figure"],
                name="search_alpha",
            ),
        ],
        tags="find_alpha",
    )
