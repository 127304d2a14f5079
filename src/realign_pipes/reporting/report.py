"""One HTML file that opens offline: recommendation, tables, figures, parameters and examples of what was written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import yaml
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from pydantic import BaseModel

from realign_pipes.errors import InputError
from realign_pipes.reporting.pages import render_page
from realign_pipes.reporting.recommendation import step_cells, task_recommendation_cells
from realign_pipes.reporting.tables import (
    alpha_text,
    budget_cells,
    judge_cells,
    metric_cells,
    overall_rows,
    percent,
    sweep_cells,
    task_cells,
    task_names,
    tax_cells,
    tokens_text,
    validation_cells,
    value_text,
)
from realign_pipes.reporting.wording import change_text, gain_cell, gain_noun, gains, rule_text
from realign_pipes.sweep.kinds import KINDS
from realign_pipes.sweep.measures import PASS_AT_1, TOKENS, Metric
from realign_pipes.sweep.metrics import Generations, load_frame


@dataclass(frozen=True)
class Answer:
    """What one candidate wrote for one problem."""

    candidate: str
    alpha: str
    completion: str
    tokens: int
    verdict: str
    """correct, wrong or cut off; finished or cut off where the task has no answers."""


@dataclass(frozen=True)
class Example:
    """One problem and every candidate's first completion of it."""

    task: str
    problem_id: str
    question: str
    reference_answer: str | None
    """None where the task has no answers."""
    answers: list[Answer]


@dataclass(frozen=True)
class Graded:
    """What graders said of the sweep."""

    metric_results: pd.DataFrame
    judge_results: pd.DataFrame
    metrics: Sequence[Metric]


def render_report(
    sweep_results: pd.DataFrame,
    recommendation: Mapping[str, Any],
    figures: Mapping[str, go.Figure],
    budget_results: pd.DataFrame,
    examples: Sequence[Example],
    parameters: Mapping[str, Any],
    validations: Mapping[str, Mapping[str, Any]],
    graded: Graded | None = None,
    pair: tuple[Metric, Metric] = (TOKENS, PASS_AT_1),
    tax_results: pd.DataFrame | None = None,
) -> str:
    """The report as HTML. Everything that a model or a user wrote is escaped; scripts and styles are in the file.

    `figures` are `pareto`, `alpha`, `budget`, `training` and, where a reward model was `graded` with, `reward`. `pair`
    is what is gained and what may be lost. The section on token budgets is left out if `budget_results` has no rows,
    that on the tax if `tax_results` has none, and the one on training if no curve was drawn. `validations` come from
    `data_docs.read_validations`; the report links to the page on them, which is in the same folder.
    """
    overall = overall_rows(sweep_results)
    return render_page(
        "report.html.jinja",
        recommendation=recommendation,
        tiles=_tiles(recommendation, *pair),
        gain=pair[0],
        loss=pair[1],
        default_pair=pair == (TOKENS, PASS_AT_1),
        margin=change_text(pair[1], recommendation["margin"]),
        gains=gains(pair[0]),
        rule=rule_text(*pair),
        scores=metric_cells(graded.metric_results, graded.metrics) if graded else None,
        metrics=[metric for metric in graded.metrics if metric not in (TOKENS, PASS_AT_1)] if graded else [],
        judges=judge_cells(graded.judge_results) if graded else None,
        rewarded=graded is not None and any(metric.unit == "number" for metric in graded.metrics),
        steps=step_cells(recommendation, *pair),
        by_task=task_recommendation_cells(recommendation, *pair),
        candidates=len(overall),
        problems=int(overall["problems"].iloc[0]),
        samples=int(overall["samples"].iloc[0]),
        sweep=sweep_cells(sweep_results, tax_results),
        tasks=task_cells(sweep_results),
        several_tasks=len(task_names(sweep_results)) > 1,
        # Plotly writes <, > and / of its data as \u003c …, so that no name can end the script that holds it.
        plotly_js=Markup(get_plotlyjs()),  # noqa: S704  Plotly's own script
        figures={name: _figure_html(figure, name) for name, figure in figures.items()},
        trained=len(figures["training"].data) > 0,
        budgets=budget_cells(budget_results),
        engines=overall.groupby("engine", sort=False)["candidate"].agg(list).to_dict(),
        tax=tax_cells(tax_results),
        kinds=[kind for name, kind in KINDS.items() if name in {*overall["kind"], *budget_results["kind"]}],
        examples=examples,
        validations=validation_cells(validations),
        parameters=yaml.safe_dump(plain(dict(sorted(parameters.items()))), sort_keys=False, allow_unicode=True),
        percent=percent,
        tokens_text=tokens_text,
    )


def collect_examples(
    generations: Generations, sweep_results: pd.DataFrame, problems: Mapping[str, tuple[str, str | None]], per_task: int
) -> list[Example]:
    """The first `per_task` problems (by id) of each task, with each candidate's first sample, in the table's order.

    `problems` is id -> (question, answer). Raises ValueError for a generation whose problem is not among them.
    """
    chosen: list[tuple[str, str]] | None = None
    answers: dict[str, dict[tuple[str, str], Answer]] = {}
    for loaded in generations.values():  # one frame in memory at a time
        frame = load_frame(loaded)
        if chosen is None:
            ids = frame[["task", "problem_id"]].drop_duplicates().sort_values(["task", "problem_id"])
            chosen = list(ids.groupby("task").head(per_task).itertuples(index=False, name=None))
        first = frame.sort_values("sample").groupby(["task", "problem_id"]).head(1)
        answers[frame["candidate"].iloc[0]] = {
            (row.task, row.problem_id): Answer(
                candidate=row.candidate,
                alpha=alpha_text(row.alpha),
                completion=row.completion,
                tokens=row.completion_tokens,
                verdict=_verdict(row.correct, row.finished),
            )
            for row in first.itertuples()
            if (row.task, row.problem_id) in chosen
        }
    examples = []
    for task, problem_id in chosen or []:
        if problem_id not in problems:
            raise InputError(
                f"generations hold problem {problem_id} of task {task}, which evaluation_set lacks: they come from "
                "different runs. Run alpha_sweep again."
            )
        question, answer = problems[problem_id]
        written = [answers[name][task, problem_id] for name in overall_rows(sweep_results)["candidate"]]
        examples.append(Example(task, problem_id, question, answer, written))
    return examples


def _verdict(correct: Any, finished: bool) -> str:
    if pd.isna(correct):
        return "finished" if finished else "cut off"
    return "correct" if correct else "wrong" if finished else "cut off"


def _tiles(recommendation: Mapping[str, Any], gain: Metric, loss: Metric) -> list[tuple[str, str]]:
    """The recommended candidate's figures: each with its caption."""
    gained = gain_cell(gain, recommendation[gain.gain_key])
    saved = "fewer tokens than the reference" if gain == TOKENS else f"{gain_noun(gain)} over the reference"
    means = [
        (value_text(metric, recommendation[metric.key]),
         f"{'mean tokens' if metric == TOKENS else metric.label}; reference "
         f"{value_text(metric, recommendation[f'reference_{metric.key}'])}")
        for metric in (gain, loss)
    ]  # fmt: skip
    return [(gained, saved), *means]


def _figure_html(figure: go.Figure, name: str) -> Markup:
    """The figure's `div` and script. The id is fixed, as a random one would make every report differ."""
    config = {"displaylogo": False, "responsive": True, "toImageButtonOptions": {"filename": name}}
    page = figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"figure-{name}", config=config)
    return Markup(page)  # noqa: S704  Plotly escapes the data, and `name` is one of ours


def plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as plain data: Kedro hands over a Pydantic model where a node's type hint names one."""
    return {
        name: value.model_dump(mode="json", exclude_unset=True) if isinstance(value, BaseModel) else value
        for name, value in parameters.items()
    }
