from kedro.pipeline import Node, Pipeline

from realign_pipes.pipelines.turns.nodes import measure_turns, tabulate_turns


def create_pipeline() -> Pipeline:
    """InRa's checkpoint and conversations -> turns_results, turns_table."""
    return Pipeline(
        [
            Node(
                measure_turns,
                inputs=["params:turns", "params:inra", "params:models", "params:folders", "inra_checkpoint"],
                outputs="turns_results",
                name="measure_turns",
            ),
            Node(tabulate_turns, inputs="turns_results", outputs="turns_table", name="tabulate_turns"),
        ],
        tags="turns",
    )
