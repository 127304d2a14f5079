"""The reporting of a sweep whose tasks have no answers, or some of whose tasks have none."""

import json

import numpy as np
import pandas as pd
import pytest

from realign_pipes.reporting.figures import alpha_figure, pareto_figure
from realign_pipes.reporting.recommendation import headline, recommend, step_cells, task_recommendation_cells
from realign_pipes.reporting.report import collect_examples, render_report
from realign_pipes.reporting.tables import budget_cells, candidate_metrics, sweep_cells, task_cells
from realign_pipes.sweep.metrics import summarise_budgets, summarise_sweep

BOOTSTRAP = {"bootstrap_samples": 100, "bootstrap_seed": 0}


def make_generations(tasks: dict[str, bool]) -> dict[str, pd.DataFrame]:
    """The reference and two students that write less, on twelve problems of each task: name, has answers?"""
    frames = {}
    about = [("reference", "reference", np.nan, 40), ("trra-1", "trra", 1.0, 30), ("trra-2", "trra", 2.0, 20)]
    for name, kind, alpha, tokens in about:
        rows = [
            {
                "candidate": name,
                "kind": kind,
                "alpha": alpha,
                "plausibility": 0.0,
                "engine": "transformers 5.23.0 float32",
                "task": task,
                "problem_id": f"{task}-{number}",
                "sample": 0,
                "completion": f"{name} writes",
                "completion_tokens": tokens + number % 3,
                "finished": number > 0,
                "correct": True if graded else pd.NA,
                "seconds": 1.0,
            }
            for task, graded in tasks.items()
            for number in range(12)
        ]
        frames[name] = pd.DataFrame(rows).astype({"correct": "boolean"})
    return frames


def report_of(generations: dict[str, pd.DataFrame]) -> tuple[dict, str]:
    """The recommendation and the report."""
    results = summarise_sweep(generations, **BOOTSTRAP)
    budgets = summarise_budgets({}, **BOOTSTRAP)
    recommendation = recommend(generations, 0.5, **BOOTSTRAP)
    problems = {problem: ("Say hello.", None) for problem in generations["reference"]["problem_id"]}
    figures = {
        "pareto": pareto_figure(results, recommendation["candidate"]),
        "alpha": alpha_figure(results),
        "budget": pareto_figure(results),
        "training": alpha_figure(results),
    }
    examples = collect_examples(generations, results, problems, 2)
    return recommendation, render_report(results, recommendation, figures, budgets, examples, {}, {})


def test_no_task_has_answers():
    generations = make_generations({"chats": False, "prompts": False})
    recommendation, page = report_of(generations)
    results = summarise_sweep(generations, **BOOTSTRAP)
    assert recommendation["candidate"] == "reference" and not recommendation["survived"]
    assert recommendation["sentence"] == (
        "Keep the reference (reference): no task has answers, so there is no pass@1 to lose, and nothing to choose a "
        "candidate by."
    )
    assert recommendation["sentence"] in page and "there is no pass@1 to show" in page
    assert ">finished<" in page and ">cut off<" in page and ">wrong<" not in page and "Expected answer" not in page
    json.dumps(recommendation, allow_nan=False)
    json.dumps(headline(results, recommendation), allow_nan=False)
    metrics = candidate_metrics(results)
    json.dumps(metrics, allow_nan=False)
    assert metrics["trra-2"]["pass_at_1"] is None and metrics["trra-2"]["token_reduction"] == pytest.approx(
        0.49, abs=0.01
    )
    tables = (sweep_cells(results), task_cells(results), step_cells(recommendation), budget_cells(results.head(0)))
    assert not any("nan" in cell for table in tables for row in table.rows for cell in row)
    assert sweep_cells(results).rows[0][3] == "–"
    panel = alpha_figure(results)
    assert list(panel.layout.yaxis.range) == [-6, 106]


def test_some_tasks_have_answers():
    """The recommendation is about those; the others count for tokens, and recommend nothing by themselves."""
    recommendation, page = report_of(make_generations({"chats": False, "sums": True}))
    assert recommendation["candidate"] == "trra-2" and recommendation["graded_tasks"] == 1
    assert recommendation["tasks"].keys() == {"sums"}
    json.dumps(recommendation, allow_nan=False)
    (of_sums,) = task_recommendation_cells(recommendation).rows
    assert of_sums[2] == "100.0 / 100.0"
    assert "Use trra-2" in page
