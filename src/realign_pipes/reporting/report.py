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
    overall_rows,
    percent,
    sweep_cells,
    task_cells,
    task_names,
    tax_cells,
    tokens_text,
    validation_cells,
)
from realign_pipes.sweep.kinds import KINDS
from realign_pipes.sweep.metrics import Generations, load_frame


@dataclass(frozen=True)
class Answer:
    """What one candidate wrote for one problem."""

    candidate: str
    alpha: str
    completion: str
    tokens: int
    verdict: str
    """correct, wrong or cut off."""


@dataclass(frozen=True)
class Example:
    """One problem and every candidate's first completion of it."""

    task: str
    problem_id: str
    question: str
    reference_answer: str
    answers: list[Answer]


def render_report(
    sweep_results: pd.DataFrame,
    recommendation: Mapping[str, Any],
    figures: Mapping[str, go.Figure],
    budget_results: pd.DataFrame,
    examples: Sequence[Example],
    parameters: Mapping[str, Any],
    validations: Mapping[str, Mapping[str, Any]],
    tax_results: pd.DataFrame | None = None,
) -> str:
    """The report as HTML. Everything that a model or a user wrote is escaped; scripts and styles are in the file.

    `figures` are `pareto`, `alpha`, `budget` and `training`. The section on token budgets is left out if
    `budget_results` has no rows, that on the tax if `tax_results` has none, and the one on training if no curve was
    drawn. `validations` come from `data_docs.read_validations`; the report links to the page on them, which is in the
    same folder.
    """
    overall = overall_rows(sweep_results)
    return render_page(
        "report.html.jinja",
        recommendation=recommendation,
        steps=step_cells(recommendation),
        by_task=task_recommendation_cells(recommendation),
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
        tax=tax_cells(tax_results),
        kinds=[kind for name, kind in KINDS.items() if name in {*overall["kind"], *budget_results["kind"]}],
        examples=examples,
        validations=validation_cells(validations),
        parameters=yaml.safe_dump(plain(dict(sorted(parameters.items()))), sort_keys=False, allow_unicode=True),
        percent=percent,
        tokens_text=tokens_text,
    )


def collect_examples(
    generations: Generations, sweep_results: pd.DataFrame, problems: Mapping[str, tuple[str, str]], per_task: int
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
                verdict="correct" if row.correct else "wrong" if row.finished else "cut off",
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
