"""plan: what a run will take, before it is started."""

from kedro.pipeline import Node, Pipeline

from realign_pipes.pipelines.plan.nodes import plan_run


def create_pipeline() -> Pipeline:
    """Parameters alone -> plan_table. No stage of DVC, and in no other pipeline."""
    return Pipeline(
        [
            Node(
                plan_run,
                inputs=[
                    "params:plan",
                    "params:data_prep",
                    "params:teachers",
                    "params:trra",
                    "params:inra",
                    "params:alpha_sweep",
                    "params:generation",
                    "params:launcher",
                    "params:folders",
                ],
                outputs="plan_table",
                name="plan_run",
            ),
        ],
        tags="plan",
    )
