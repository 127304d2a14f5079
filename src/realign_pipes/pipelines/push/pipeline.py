from kedro.pipeline import Node, Pipeline

from realign_pipes.pipelines.push.nodes import push_checkpoints


def create_pipeline() -> Pipeline:
    """trra_checkpoints and the folder of inra_checkpoint -> branches of a repository on the hub."""
    return Pipeline(
        [
            Node(
                push_checkpoints,
                inputs=["params:push", "params:trra", "trra_checkpoints", "pushed_inra"],
                outputs=None,
                name="push_checkpoints",
            )
        ],
        tags="push",
    )
