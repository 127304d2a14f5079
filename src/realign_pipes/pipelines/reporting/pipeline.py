"""Stage reporting: sweep_results and generations to table, figures, recommendation and report."""

from kedro.pipeline import Node, Pipeline

from .nodes import draw_figures, print_summary, recommend_candidate, tabulate_sweep, write_report


def create_pipeline() -> Pipeline:
    """The reporting stage."""
    return Pipeline(
        [
            Node(recommend_candidate, ["sweep_results", "params:reporting"], "recommendation"),
            Node(
                tabulate_sweep,
                ["sweep_results", "recommendation"],
                ["sweep_table_markdown", "sweep_table_csv", "sweep_metrics"],
            ),
            Node(draw_figures, ["sweep_results", "recommendation"], ["pareto_figure", "alpha_figure"]),
            Node(
                write_report,
                {
                    "sweep_results": "sweep_results",
                    "recommendation": "recommendation",
                    "pareto_figure": "pareto_figure",
                    "alpha_figure": "alpha_figure",
                    "generations": "generations",
                    "evaluation_set": "evaluation_set",
                    "parameters": "params:reporting",
                    "all_parameters": "parameters",
                },
                "report_html",
            ),
            Node(print_summary, ["sweep_results", "recommendation", "report_html"], None),
        ]
    )
