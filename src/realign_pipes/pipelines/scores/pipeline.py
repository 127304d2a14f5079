"""Stage scores: generations and evaluation_set to scores, metric_results and what the judges said."""

from kedro.pipeline import Node, Pipeline

from realign_pipes.pipelines.scores.nodes import score


def create_pipeline() -> Pipeline:
    """The stage scores."""
    return Pipeline(
        [
            Node(
                score,
                inputs=["params:scores", "params:alpha_sweep", "params:folders", "generations", "evaluation_set"],
                outputs=["scores", "metric_results", "judge_verdicts", "judge_results"],
                name="score",
            )
        ],
        tags="scores",
    )
