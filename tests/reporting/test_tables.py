"""Cells are rounded, files are not."""

import io
import json
from collections.abc import Callable

import pandas as pd
import pytest
from rich.console import Console

from realign_pipes.reporting import tables
from realign_pipes.sweep.metrics import summarise_sweep


@pytest.mark.parametrize(
    ("share", "text"), [(0.97725, "97.7"), (-0.0712, "−7.1"), (-0.0001, "0.0"), (1.0, "100.0"), (0.42126, "42.1")]
)
def test_percent(share: float, text: str):
    assert tables.percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.21, "4.2 s"), (99.4, "99.4 s"), (99.6, "1 min 40 s"), (3599.7, "1 h 00 min"), (5400, "1 h 30 min")],
)
def test_duration(seconds: float, text: str):
    assert tables.duration(seconds) == text


def test_single_task_has_the_papers_columns(sweep_results: pd.DataFrame):
    cells = tables.sweep_cells(sweep_results)
    assert cells.header == [
        "candidate", "alpha", "beta", "pass@1 % [95 %]", "tokens", "reduction", "truncated", "disk",
        "models / KV / passes", "training", "time",
    ]  # fmt: skip
    rows = {row[0]: row[1:] for row in cells.rows}
    assert rows["reference"][0] == "–" and rows["reference"][4] == "–"
    assert rows["reference"][6:] == ["0", "1 / 1 / 1", "0", "31.0 s"]
    assert rows["trra_1.5"][6:] == ["1.23 MB", "1 / 1 / 1", "34.5 s", "24.0 s"]
    assert rows["dera_1.5"][6:] == ["1.23 MB", "2 / 2 / 2", "0", "70.0 s"]
    assert rows["inra_1.0"][6:] == ["1.23 MB", "1 / 2 / 2", "34.5 s", "48.0 s"]
    assert rows["reference"][1] == "0" and rows["dera_1.5"][1] == "0.1"
    assert rows["inra_-0.25"][0] == "−0.25"
    trra = sweep_results.query("candidate == 'trra_1.5' and task == 'all'").iloc[0]
    assert rows["trra_1.5"][3] == f"{trra['mean_tokens']:.1f}"
    assert rows["trra_1.5"][4] == f"{100 * trra['token_reduction']:.1f} %"


def test_several_tasks_have_a_column_each(make_sweep: Callable):
    generations = make_sweep(("one", "two"), problems=5, samples=1)
    results = summarise_sweep(generations, bootstrap_samples=50, bootstrap_seed=0)
    cells = tables.sweep_cells(results)
    assert cells.header[4:6] == ["one % / tokens", "two % / tokens"]
    aligned = results.query("candidate == 'aligned' and task == 'two'").iloc[0]
    cell = f"{100 * aligned['pass_at_1']:.1f} / {aligned['mean_tokens']:.1f}"
    assert next(row for row in cells.rows if row[0] == "aligned")[5] == cell
    assert len(tables.task_cells(results).rows) == 2 * len(generations)
    wide = tables.wide_table(results).set_index("candidate")
    assert wide.loc["aligned", "two/mean_tokens"] == aligned["mean_tokens"]
    assert wide.index.tolist() == [row[0] for row in cells.rows]


def test_the_tax_has_a_table_and_a_column_for_each_task_in_that_of_the_sweep(sweep_results: pd.DataFrame):
    columns = ["candidate", "kind", "alpha", "task", "metric", "value", "stderr", "difference"]
    rows = [
        ("reference", "reference", float("nan"), "mmlu", "acc", 0.5, 0.01, 0.0),
        ("reference", "reference", float("nan"), "gsm8k", "exact_match/strict-match", 0.25, 0.02, 0.0),
        ("reference", "reference", float("nan"), "gsm8k", "exact_match/flexible-extract", 0.75, float("nan"), 0.0),
        ("trra_1.5", "trra", 1.5, "mmlu", "acc", 0.4375, 0.01, -0.0625),
        ("trra_1.5", "trra", 1.5, "gsm8k", "exact_match/strict-match", 0.5, 0.02, 0.25),
    ]
    tax = pd.DataFrame(rows, columns=columns)
    cells = tables.tax_cells(tax)
    metrics = ["mmlu: acc", "gsm8k: exact_match/strict-match", "gsm8k: exact_match/flexible-extract"]
    assert cells.header == ["candidate", "alpha", *metrics]
    assert cells.rows == [
        ["reference", "–", "0.500 ± 0.010", "0.250 ± 0.020", "0.750"],
        ["trra_1.5", "1.5", "0.438 ± 0.010 (−0.062)", "0.500 ± 0.020 (+0.250)", "–"],
    ]
    sweep = tables.sweep_cells(sweep_results, tax)
    assert sweep.header[-2:] == ["mmlu", "gsm8k"]
    assert {row[0]: row[-2:] for row in sweep.rows}["trra_1.5"] == cells.rows[1][2:4]
    assert {row[0]: row[-2:] for row in sweep.rows}["aligned"] == ["–", "–"]
    wide = tables.wide_table(sweep_results, tax).set_index("candidate")
    assert wide.loc["trra_1.5", "tax/mmlu/acc"] == 0.4375 and wide.loc["trra_1.5", "tax/mmlu/acc/difference"] == -0.0625
    assert wide["tax/gsm8k/exact_match/flexible-extract"].notna().sum() == 1
    assert tables.tax_cells(pd.DataFrame()).rows == []
    assert tables.sweep_cells(sweep_results, pd.DataFrame()) == tables.sweep_cells(sweep_results)


def test_budgets_stand_beside_plain_truncation(budget_results: pd.DataFrame):
    cells = tables.budget_cells(budget_results)
    assert cells.header == [
        "budget", "method", "pass@1 % [95 %]", "truncated", "tokens", "difference [95 %]", "to forced closing [95 %]",
    ]  # fmt: skip
    assert [row[:2] for row in cells.rows] == [
        [budget, method]
        for budget in ("24", "48", "96")
        for method in ("Plain truncation", "Forced closing", "TokenBudget")
    ]
    rows = [[row[column].split(" ")[0] for row in cells.rows] for column in range(7)]
    assert rows[3] == ["95.0", "0.0", "10.0", "40.0", "0.0", "5.0", "0.0", "0.0", "0.0"]
    assert rows[4] == ["23.8", "20.0", "20.4", "31.2", "20.0", "21.4", "20.0", "20.0", "20.0"]
    assert rows[5] == ["–", "65.0", "70.0", "–", "35.0", "35.0", "–", "0.0", "−2.5"]
    assert rows[6] == ["–", "–", "5.0", "–", "–", "0.0", "–", "–", "−2.5"]
    one = budget_results.iloc[2]
    assert cells.rows[2][2] == f"75.0 [{100 * one['pass_at_1_low']:.1f}, {100 * one['pass_at_1_high']:.1f}]"
    assert cells.rows[2][5] == f"70.0 [{100 * one['difference_low']:.1f}, {100 * one['difference_high']:.1f}]"
    ends = [f"{100 * one[f'forced_difference_{end}']:.1f}" for end in ("low", "high")]
    assert cells.rows[2][6] == f"5.0 [{', '.join(ends)}]" and ends[0] != f"{100 * one['difference_low']:.1f}"


def test_no_budgets_give_a_table_without_rows(no_budgets: pd.DataFrame):
    assert tables.budget_cells(no_budgets).rows == []


def test_markdown_marks_the_recommended_row(sweep_results: pd.DataFrame):
    lines = tables.markdown_table(tables.sweep_cells(sweep_results), "trra_1.5").splitlines()
    assert lines[1] == "| --- |" + " ---: |" * 10
    assert [line for line in lines if "**" in line] == [line for line in lines if line.startswith("| **trra_1.5** |")]
    assert len(lines) == 2 + sweep_results["candidate"].nunique()


def test_markdown_escapes_pipes():
    assert tables.markdown_table(tables.Cells(["a|b"], [["c|d"]], 1), None) == "| a\\|b |\n| --- |\n| c\\|d |\n"


def test_terminal_table_shows_every_cell(sweep_results: pd.DataFrame):
    cells = tables.sweep_cells(sweep_results)
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(tables.terminal_table(cells, "trra_1.5"))
    printed = console.export_text()
    assert all(value in printed for row in cells.rows for value in row)


def test_metrics_have_exactly_the_promised_keys(sweep_results: pd.DataFrame):
    metrics = tables.candidate_metrics(sweep_results)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    keys = ["pass_at_1", "pass_at_1_low", "pass_at_1_high", "mean_tokens", "token_reduction", "truncated"]
    assert all(list(one) == keys for one in metrics.values())
    overall = sweep_results[sweep_results["task"] == "all"].set_index("candidate")
    assert list(metrics) == list(overall.index)
    for name, one in metrics.items():
        assert one["pass_at_1"] == overall.loc[name, "pass_at_1"]
        assert one["mean_tokens"] == overall.loc[name, "mean_tokens"]
