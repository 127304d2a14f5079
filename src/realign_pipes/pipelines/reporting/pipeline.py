"""Stage reporting: sweep_results, budget_results and generations to tables, figures, recommendation and report."""

from kedro.pipeline import Node, Pipeline

from realign_pipes.pipelines.reporting.nodes import (
    build_data_docs,
    draw_budgets,
    draw_figures,
    draw_training,
    log_sweep,
    print_summary,
    recommend_candidate,
    summarise_headline,
    tabulate_budgets,
    tabulate_sweep,
    write_report,
)


def create_pipeline() -> Pipeline:
    """The reporting stage."""
    return Pipeline(
        [
            Node(
                recommend_candidate,
                inputs=["generations", "scores", "params:reporting", "params:scores", "params:alpha_sweep"],
                outputs="recommendation",
                name="recommend_candidate",
            ),
            Node(
                summarise_headline,
                inputs=["sweep_results", "recommendation", "params:reporting", "params:scores"],
                outputs="headline_metrics",
                name="summarise_headline",
            ),
            Node(
                tabulate_sweep,
                inputs=[
                    "sweep_results",
                    "metric_results",
                    "judge_results",
                    "recommendation",
                    "params:scores",
                    "tax_results",
                ],
                outputs=["sweep_table_markdown", "sweep_table_csv", "sweep_metrics"],
                name="tabulate_sweep",
            ),
            Node(
                draw_figures,
                inputs=[
                    "sweep_results",
                    "metric_results",
                    "scores",
                    "recommendation",
                    "params:reporting",
                    "params:scores",
                ],
                outputs=["pareto_figure", "alpha_figure", "reward_figure"],
                name="draw_figures",
            ),
            Node(
                tabulate_budgets,
                inputs="budget_results",
                outputs="budget_table_markdown",
                name="tabulate_budgets",
            ),
            Node(draw_budgets, inputs="budget_results", outputs="budget_figure", name="draw_budgets"),
            Node(
                draw_training,
                inputs=["sweep_results", "reference_model", "aligned_model", "trra_checkpoints", "inra_checkpoint"],
                outputs="training_figure",
                name="draw_training",
            ),
            Node(
                build_data_docs,
                inputs=["params:folders", "sweep_results"],
                outputs="data_docs",
                name="build_data_docs",
            ),
            Node(
                write_report,
                inputs={
                    "sweep_results": "sweep_results",
                    "metric_results": "metric_results",
                    "judge_results": "judge_results",
                    "recommendation": "recommendation",
                    "pareto_figure": "pareto_figure",
                    "alpha_figure": "alpha_figure",
                    "reward_figure": "reward_figure",
                    "budget_results": "budget_results",
                    "budget_figure": "budget_figure",
                    "training_figure": "training_figure",
                    "generations": "generations",
                    "evaluation_set": "evaluation_set",
                    "tax_results": "tax_results",
                    "parameters": "params:reporting",
                    "graders": "params:scores",
                    "folders": "params:folders",
                    "all_parameters": "parameters",
                },
                outputs="report_html",
                name="write_report",
            ),
            Node(
                log_sweep,
                inputs=[
                    "params:tracking",
                    "parameters",
                    "sweep_results",
                    "sweep_table_markdown",
                    "pareto_figure",
                    "alpha_figure",
                    "report_html",
                ],
                outputs=None,
                name="log_sweep",
            ),
            Node(
                print_summary,
                inputs=[
                    "sweep_results",
                    "metric_results",
                    "judge_results",
                    "recommendation",
                    "budget_results",
                    "params:scores",
                    "tax_results",
                    "report_html",
                ],
                outputs=None,
                name="print_summary",
            ),
        ],
        tags="reporting",
    )
