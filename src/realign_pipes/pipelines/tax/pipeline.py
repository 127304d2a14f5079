from kedro.pipeline import Node, Pipeline

from realign_pipes.pipelines.tax.nodes import measure_tax, tabulate_tax


def create_pipeline() -> Pipeline:
    """Models, checkpoints and what the sweep drew -> tax_results, tax_table."""
    return Pipeline(
        [
            Node(
                measure_tax,
                inputs=[
                    "params:tax",
                    "params:alpha_sweep",
                    "params:data_prep",
                    "params:trra",
                    "params:inra",
                    "params:models",
                    "params:generation",
                    "params:folders",
                    "reference_model",
                    "aligned_model",
                    "trra_checkpoints",
                    "inra_checkpoint",
                    "evaluation_set",
                    "generations",
                ],
                outputs="tax_results",
                name="measure_tax",
            ),
            Node(tabulate_tax, inputs="tax_results", outputs="tax_table", name="tabulate_tax"),
        ],
        tags="tax",
    )
