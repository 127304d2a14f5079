from kedro.pipeline import Node, Pipeline

from realign_pipes.pipelines.alpha_sweep.nodes import summarise, sweep


def create_pipeline() -> Pipeline:
    """Models, checkpoints and evaluation_set -> generations -> sweep_results."""
    return Pipeline(
        [
            Node(
                sweep,
                inputs=[
                    "params:alpha_sweep",
                    "params:data_prep",
                    "params:trra",
                    "params:inra",
                    "params:models",
                    "params:generation",
                    "params:launcher",
                    "params:folders",
                    "reference_model",
                    "aligned_model",
                    "trra_checkpoints",
                    "inra_checkpoint",
                    "evaluation_set",
                ],
                outputs=["generations", "budget_generations", "budget_results", "candidate_costs"],
                name="sweep",
            ),
            Node(
                summarise,
                inputs=["params:alpha_sweep", "generations", "candidate_costs"],
                outputs="sweep_results",
                name="summarise",
            ),
        ],
        tags="alpha_sweep",
    )
