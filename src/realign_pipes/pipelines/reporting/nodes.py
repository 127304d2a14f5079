"""Nodes of the reporting stage; `realign_pipes.reporting` makes what they show."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realign_pipes.graders.parameters import Scores
from realign_pipes.pipelines.reporting.parameters import Reporting
from realign_pipes.pipelines.trra.parameters import SCALED_LORA
from realign_pipes.runtime.launch import Folders
from realign_pipes.runtime.tracking import Tracking
from realign_pipes.sweep.parameters import AlphaSweep

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure

    from realign_pipes.sweep.measures import Metric
else:  # Kedro resolves every node's hints when a run starts, and the real imports would slow it down
    DataFrame = Figure = Any

logger = logging.getLogger(__name__)


def recommend_candidate(
    generations: dict[str, DataFrame | Callable[[], DataFrame]],
    scores: DataFrame,
    parameters: Reporting,
    graders: Scores,
    alpha_sweep: AlphaSweep,
) -> dict[str, Any]:
    """The candidate to take, overall and for each task, why in one sentence, and the numbers behind it."""
    from realign_pipes.reporting.recommendation import recommend

    gain, loss = _metrics(parameters, graders)
    return recommend(
        generations,
        parameters.margin,
        bootstrap_samples=alpha_sweep.bootstrap_samples,
        bootstrap_seed=alpha_sweep.bootstrap_seed,
        gain=gain,
        loss=loss,
        scores=scores,
    )


def summarise_headline(
    sweep_results: DataFrame, recommendation: dict[str, Any], parameters: Reporting, graders: Scores
) -> dict[str, Any]:
    """The figures by which `dvc metrics show` and `dvc exp show` compare experiments."""
    from realign_pipes.reporting.recommendation import headline

    return headline(sweep_results, recommendation, *_metrics(parameters, graders))


def tabulate_sweep(
    sweep_results: DataFrame,
    metric_results: DataFrame,
    judge_results: DataFrame,
    recommendation: dict[str, Any],
    graders: Scores,
    tax_results: DataFrame,
) -> tuple[str, DataFrame, dict[str, dict[str, float | None]]]:
    """The sweep's table as Markdown (rounded), as a frame for CSV, and as JSON (neither rounded).

    With graders, the Markdown has their tables below it.
    """
    from realign_pipes.reporting.tables import candidate_metrics, markdown_table, sweep_cells, wide_table

    candidate = recommendation["candidate"]
    markdown = f"{markdown_table(sweep_cells(sweep_results, tax_results), candidate)}\n{recommendation['sentence']}\n"
    for cells in _graded_cells(metric_results, judge_results, graders):
        markdown += f"\n{markdown_table(cells, candidate)}"
    return markdown, wide_table(sweep_results, tax_results), candidate_metrics(sweep_results)


def draw_figures(
    sweep_results: DataFrame,
    metric_results: DataFrame,
    scores: DataFrame,
    recommendation: dict[str, Any],
    parameters: Reporting,
    graders: Scores,
) -> tuple[Figure, Figure, Figure]:
    """What may be lost against what is gained (pass@1 against tokens), both against alpha, and rewards."""
    from realign_pipes.graders.metrics import metrics_of
    from realign_pipes.reporting.figures import Pair, alpha_figure, pareto_figure, reward_figure

    pair = Pair(*_metrics(parameters, graders), metric_results)
    pareto = pareto_figure(sweep_results, recommendation["candidate"], pair)
    return pareto, alpha_figure(sweep_results, pair), reward_figure(scores, metrics_of(graders))


def tabulate_budgets(budget_results: DataFrame) -> str:
    """The table of token budgets as Markdown, or a sentence where none were measured."""
    from realign_pipes.reporting.tables import budget_cells, markdown_table

    if budget_results.empty:
        return "No token budgets were measured.\n"
    return markdown_table(budget_cells(budget_results), None)


def draw_budgets(budget_results: DataFrame) -> Figure:
    """pass@1 and truncated completions against the token budget."""
    from realign_pipes.reporting.figures import budget_figure

    return budget_figure(budget_results)


def draw_training(
    sweep_results: DataFrame,
    reference_model: Path,
    aligned_model: Path,
    trra_checkpoints: dict[str, Path],
    inra_checkpoint: Path,
) -> Figure:
    """Loss, gradient norm, learning rate, speed and memory of every model that was trained here and measured."""
    from realign_pipes.reporting.training_curves import read_curves, training_figure

    measured = set(sweep_results["candidate"])
    if "lora_scale" in set(sweep_results["kind"]):  # whose candidates have the names of their alphas
        measured.add(SCALED_LORA)
    checkpoints = {
        "reference": reference_model,
        "aligned": aligned_model,
        **{path.name: path for path in trra_checkpoints.values() if path.name in measured},
        "inra": inra_checkpoint,
        "inra (SFT)": inra_checkpoint / "sft",  # before a DPO
    }
    curves = {name: read_curves(path) for name, path in checkpoints.items()}
    return training_figure({name: frame for name, frame in curves.items() if frame is not None})


def build_data_docs(folders: Folders, sweep_results: DataFrame) -> Path:
    """The page on every validation. Takes the sweep's results so that all data have been checked before."""
    from realign_pipes.reporting import data_docs

    return data_docs.build_data_docs(folders.validation, folders.work / "reporting" / "data_docs")


def write_report(
    sweep_results: DataFrame,
    metric_results: DataFrame,
    judge_results: DataFrame,
    recommendation: dict[str, Any],
    pareto_figure: Figure,
    alpha_figure: Figure,
    reward_figure: Figure,
    budget_results: DataFrame,
    budget_figure: Figure,
    training_figure: Figure,
    generations: dict[str, DataFrame | Callable[[], DataFrame]],
    evaluation_set: Any,
    tax_results: DataFrame,
    parameters: Reporting,
    graders: Scores,
    folders: Folders,
    all_parameters: dict[str, Any],
) -> str:
    """The HTML report. `evaluation_set` (a `datasets.Dataset`) has the questions and answers of the examples."""
    from realign_pipes.graders.metrics import metrics_of
    from realign_pipes.reporting.data_docs import read_validations
    from realign_pipes.reporting.report import Graded, collect_examples, render_report

    questions = zip(evaluation_set["question"], evaluation_set["answer"], strict=True)
    problems = dict(zip(evaluation_set["id"], questions, strict=True))
    examples = collect_examples(generations, sweep_results, problems, parameters.examples)
    return render_report(
        sweep_results,
        recommendation,
        {
            "pareto": pareto_figure,
            "alpha": alpha_figure,
            "reward": reward_figure,
            "budget": budget_figure,
            "training": training_figure,
        },
        budget_results,
        examples,
        all_parameters,
        validations=read_validations(folders.validation),
        graded=Graded(metric_results, judge_results, metrics_of(graders)) if graders.graders else None,
        pair=_metrics(parameters, graders),
        tax_results=tax_results,
    )


def log_sweep(
    tracking: Tracking,
    all_parameters: dict[str, Any],
    sweep_results: DataFrame,
    sweep_table_markdown: str,
    pareto_figure: Figure,
    alpha_figure: Figure,
    report_html: str,
) -> None:
    """Report the sweep to the experiment tracker, if there is one."""
    if tracking.to == "none":
        return
    from realign_pipes.reporting.report import plain
    from realign_pipes.reporting.tracking import report_sweep

    pages = {
        "sweep_table.md": sweep_table_markdown,
        "sweep_results.csv": sweep_results.to_csv(index=False),
        "pareto_figure.html": pareto_figure.to_html(),
        "alpha_figure.html": alpha_figure.to_html(),
        "report.html": report_html,
    }
    report_sweep(tracking, plain(all_parameters), sweep_results, pages)


def print_summary(
    sweep_results: DataFrame,
    metric_results: DataFrame,
    judge_results: DataFrame,
    recommendation: dict[str, Any],
    budget_results: DataFrame,
    graders: Scores,
    tax_results: DataFrame,
    report_html: str,
) -> None:
    """Print the tables, then log the recommendation. Takes the report so that this node runs last."""
    from rich.console import Console
    from rich.measure import Measurement

    from realign_pipes.reporting.tables import budget_cells, sweep_cells, terminal_table

    tables = [terminal_table(sweep_cells(sweep_results, tax_results), recommendation["candidate"])]
    graded = _graded_cells(metric_results, judge_results, graders)
    tables += [terminal_table(cells, recommendation["candidate"]) for cells in graded]
    if not budget_results.empty:
        tables.append(terminal_table(budget_cells(budget_results), None))
    console = Console()
    for table in tables:
        if not console.is_terminal:  # a log file is as wide as the table needs
            console.width = Measurement.get(console, console.options.update(width=10_000), table).maximum
        console.print(table)
    logger.info("%s", recommendation["sentence"])


def _metrics(parameters: Reporting, graders: Scores) -> "tuple[Metric, Metric]":
    """What is gained, and what may be lost."""
    from realign_pipes.graders.metrics import find_metric, metrics_of

    metrics = metrics_of(graders)
    gain = find_metric(metrics, parameters.gain, "reporting.gain")
    return gain, find_metric(metrics, parameters.loss, "reporting.loss")


def _graded_cells(metric_results: DataFrame, judge_results: DataFrame, graders: Scores) -> list[Any]:
    """The tables of what graders say, as cells; none without graders."""
    from realign_pipes.graders.metrics import metrics_of
    from realign_pipes.reporting.tables import judge_cells, metric_cells

    if not graders.graders:
        return []
    cells = [metric_cells(metric_results, metrics_of(graders))]
    return cells if judge_results.empty else [*cells, judge_cells(judge_results)]
