"""The sweep's table, with the paper's columns, and the table of token budgets: as text, Markdown, CSV and JSON."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from realign_pipes.sweep.kinds import KINDS
from realign_pipes.sweep.measures import Metric
from realign_pipes.sweep.metrics import ALL_TASKS, is_reference

METRICS = ["pass_at_1", "pass_at_1_low", "pass_at_1_high", "mean_tokens", "token_reduction", "truncated"]
NONE = "–"


@dataclass(frozen=True)
class Cells:
    """A table as text. The first `left` columns are words; the others are numbers, aligned to the right."""

    header: list[str]
    rows: list[list[str]]
    left: int


def percent(share: float | None, digits: int = 1) -> str:
    """0.977 -> 97.7, with a real minus sign and no negative zero; a dash where there is no figure."""
    if share is None or math.isnan(share):
        return NONE
    return f"{round(100 * share, digits) + 0.0:.{digits}f}".replace("-", "−")


def points(share: float) -> str:
    """A difference of shares in percentage points: 1.0 point, 2.0 points."""
    number = percent(share)
    return f"{number} point" if number == "1.0" else f"{number} points"


def duration(seconds: float) -> str:
    """Wall time in at most two units."""
    if seconds < 99.5:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02d} min" if hours else f"{minutes} min {rest:02d} s"


def alpha_text(alpha: float) -> str:
    """An alpha for display; a dash for a candidate without one."""
    return NONE if math.isnan(alpha) else f"{alpha:g}".replace("-", "−")


def tokens_text(tokens: float) -> str:
    """Mean tokens for display: 64.3, 12,602."""
    return f"{tokens:,.0f}" if tokens >= 1000 else f"{tokens:.1f}"


def number_text(value: float) -> str:
    """Three digits, with a real minus sign."""
    return f"{value:.3g}".replace("-", "−")


def value_text(metric: Metric, value: float, unit: str = " %") -> str:
    """A mean for display: 97.7 % of a share (`unit` may leave the sign out), 64.3 of a count."""
    if metric.unit == "share":
        return f"{percent(value)}{unit}"
    return tokens_text(value) if metric.unit == "count" else number_text(value)


def reduction_text(row: Any) -> str:
    """The token reduction for display; a dash for the reference."""
    return NONE if is_reference(row) else f"{percent(row.token_reduction)} %"


def percent_interval(value: float, low: float, high: float) -> str:
    """A share or a difference of shares and the ends of its interval, in percent: 97.7 [95.0, 99.1]."""
    return f"{percent(value)} [{percent(low)}, {percent(high)}]"


def interval_text(row: Any) -> str:
    """pass@1 and its interval, in percent; a dash where there is none."""
    if math.isnan(row.pass_at_1):
        return NONE
    return percent_interval(row.pass_at_1, row.pass_at_1_low, row.pass_at_1_high)


def difference_text(row: Any) -> str:
    """pass@1 less that of truncation, with its interval, in percentage points; a dash for truncation itself."""
    if row.kind == "truncation" or math.isnan(row.difference):
        return NONE
    return percent_interval(row.difference, row.difference_low, row.difference_high)


def forced_difference_text(row: Any) -> str:
    """The same against forced closing; a dash for this and for truncation."""
    if row.kind in ("truncation", "forced_close") or math.isnan(row.forced_difference):
        return NONE
    low, high = percent(row.forced_difference_low), percent(row.forced_difference_high)
    return f"{percent(row.forced_difference)} [{low}, {high}]"


def overall_rows(sweep_results: pd.DataFrame) -> pd.DataFrame:
    """The rows for all tasks, one per candidate."""
    return sweep_results[sweep_results["task"] == ALL_TASKS].reset_index(drop=True)


def task_names(sweep_results: pd.DataFrame) -> list[str]:
    """The tasks, in the order of the table."""
    return [task for task in sweep_results["task"].unique() if task != ALL_TASKS]


def bytes_text(count: float) -> str:
    """A size on disk: 0, 412 kB, 1.2 MB, 3.1 GB; a dash where it is not known."""
    if math.isnan(count):
        return NONE
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:g} B" if count else "0"


def train_text(seconds: float) -> str:
    """Seconds of training for display: 0 without one, a dash where it is not known."""
    return NONE if math.isnan(seconds) else duration(seconds) if seconds else "0"


def is_default(rows: pd.DataFrame) -> pd.Series:
    """Which rows are their kind's own: with the mask that was asked for where alpha mixes, and without one elsewhere.

    The others show what the mask does: TrRa and DeRa without it, and both models with it, as a min-p.
    """
    has_alpha = rows["kind"].map(lambda kind: KINDS[kind].has_alpha)
    largest = rows.groupby("kind")["plausibility"].transform("max").where(has_alpha, 0.0)
    return rows["plausibility"] == largest


def sweep_cells(sweep_results: pd.DataFrame, tax_results: pd.DataFrame | None = None) -> Cells:
    """One row per candidate. The tasks have columns of their own if there are several; so has each task of the tax,
    with the first of its metrics, if there is one."""
    tasks = task_names(sweep_results)
    shown = tasks if len(tasks) > 1 else []
    by_task = {task: frame.set_index("candidate") for task, frame in sweep_results.groupby("task")}
    header = ["candidate", "alpha", "beta", "pass@1 % [95 %]", *(f"{task} % / tokens" for task in shown)]
    taxed: dict[str, dict[str, Any]] = {}
    for (task, _), by_candidate in _by_metric(tax_results).items():
        taxed.setdefault(task, by_candidate)
    rows = []
    for row in overall_rows(sweep_results).itertuples():
        single = [by_task[task].loc[row.candidate] for task in shown]
        rows.append(
            [
                row.candidate,
                alpha_text(row.alpha),
                f"{row.plausibility:g}",
                interval_text(row),
                *(f"{percent(one.pass_at_1)} / {tokens_text(one.mean_tokens)}" for one in single),
                tokens_text(row.mean_tokens),
                reduction_text(row),
                f"{percent(row.truncated)} %",
                bytes_text(row.bytes),
                f"{row.models} / {row.kv_streams} / {row.passes}",
                train_text(row.train_seconds),
                duration(row.seconds),
                *(tax_text(by_candidate.get(row.candidate)) for by_candidate in taxed.values()),
            ]
        )
    costs = ["disk", "models / KV / passes", "training", "time"]
    return Cells([*header, "tokens", "reduction", "truncated", *costs, *taxed], rows, left=1)


def tax_text(row: Any) -> str:
    """A figure of the tax, its standard error, and its difference to the reference's: 0.950 ± 0.015 (−0.010). A dash
    where it was not measured."""
    if row is None:
        return NONE
    stderr = "" if math.isnan(row.stderr) else f" ± {row.stderr:.3f}"
    difference = "" if row.kind == "reference" else f" ({row.difference:+.3f})".replace("-", "−")
    return f"{row.value:.3f}{stderr}{difference}"


def tax_cells(tax_results: pd.DataFrame | None) -> Cells:
    """The alignment tax: one row per candidate, and a column for each metric of each task. No rows without a tax."""
    columns = _by_metric(tax_results)
    candidates = {name: row.alpha for by_candidate in columns.values() for name, row in by_candidate.items()}
    rows = [
        [name, alpha_text(alpha), *(tax_text(by_candidate.get(name)) for by_candidate in columns.values())]
        for name, alpha in candidates.items()
    ]
    return Cells(["candidate", "alpha", *(f"{task}: {metric}" for task, metric in columns)], rows, left=1)


def turns_cells(turns_results: pd.DataFrame) -> Cells:
    """Conversations: a row for each list of alphas, with the share of replies as expected and the words, by turn."""
    turns = sorted(turns_results["turn"].unique(), key=lambda turn: (turn == 0, turn))
    rows = []
    for alphas, found in turns_results.groupby("alphas", sort=False):
        by_turn = found.set_index("turn")
        cells = [
            f"{percent_interval(row.followed, row.low, row.high)} / {row.words:.1f}"
            for row in by_turn.loc[turns].itertuples()
        ]
        both = by_turn.loc[0]
        change = percent_interval(both.difference, both.difference_low, both.difference_high)
        rows.append([alphas.replace("-", "−"), *cells, change])
    heads = ["all turns" if turn == 0 else f"turn {turn}" for turn in turns]
    header = ["alphas", *(f"{head}: as expected % / words" for head in heads), "to the first row, points"]
    return Cells(header, rows, left=1)


def _by_metric(tax_results: pd.DataFrame | None) -> dict[tuple[str, str], dict[str, Any]]:
    """(task, metric) -> candidate -> its row, in the order of the results; empty where there are none."""
    columns: dict[tuple[str, str], dict[str, Any]] = {}
    for row in () if tax_results is None else tax_results.itertuples():
        columns.setdefault((row.task, row.metric), {})[row.candidate] = row
    return columns


def task_cells(sweep_results: pd.DataFrame) -> Cells:
    """One row per candidate and task."""
    rows = [
        [
            row.task,
            row.candidate,
            alpha_text(row.alpha),
            f"{row.plausibility:g}",
            f"{row.problems} × {row.samples}",
            interval_text(row),
            tokens_text(row.mean_tokens),
            reduction_text(row),
            f"{percent(row.truncated)} %",
        ]
        for task in task_names(sweep_results)
        for row in sweep_results[sweep_results["task"] == task].itertuples()
    ]
    header = ["task", "candidate", "alpha", "beta", "problems × samples", "pass@1 % [95 %]"]
    return Cells([*header, "tokens", "reduction", "truncated"], rows, left=2)


def budget_cells(budget_results: pd.DataFrame) -> Cells:
    """One row per candidate, those of one budget together; no rows without budgets."""
    rows = [
        [
            str(row.budget),
            KINDS[row.kind].label,
            interval_text(row),
            f"{percent(row.truncated)} %",
            tokens_text(row.mean_tokens),
            difference_text(row),
            forced_difference_text(row),
        ]
        for row in budget_results.itertuples()
    ]
    header = ["budget", "method", "pass@1 % [95 %]", "truncated", "tokens"]
    return Cells([*header, "difference [95 %]", "to forced closing [95 %]"], rows, left=2)


def metric_cells(metric_results: pd.DataFrame, metrics: Sequence[Metric]) -> Cells:
    """One row per candidate, one column per metric: the mean over all tasks with its 95 % interval."""
    overall = metric_results[metric_results["task"] == ALL_TASKS]
    by_metric = {name: frame.set_index("candidate") for name, frame in overall.groupby("metric")}
    shown = [metric for metric in metrics if metric.name in by_metric]
    rows = []
    for candidate in overall["candidate"].unique():
        cells = [candidate]
        for metric in shown:
            found = by_metric[metric.name]
            if candidate not in found.index:
                cells.append(NONE)
                continue
            one = found.loc[candidate]
            mean, low, high = (value_text(metric, one[name], "") for name in ("mean", "low", "high"))
            cells.append(f"{mean} [{low}, {high}]")
        rows.append(cells)
    heads = [f"{metric.label} %" if metric.unit == "share" else metric.label for metric in shown]
    return Cells(["candidate", *heads], rows, left=1)


def judge_cells(judge_results: pd.DataFrame) -> Cells:
    """One row per judge and candidate: who won, whether that can be trusted, both lengths, and what it cost."""
    rows = [
        [
            row.judge,
            row.candidate,
            *(NONE if math.isnan(share) else f"{percent(share)} %" for share in (
                row.win_rate, row.ties, row.unreadable, row.agreement, row.first_preferred)),
            f"{row.words:.1f} / {row.reference_words:.1f}",
            f"{row.requests:,}",
            f"{row.prompt_tokens:,} + {row.completion_tokens:,}",
        ]
        for row in judge_results.itertuples()
    ]  # fmt: skip
    trust = ["ties", "unreadable", "agrees with itself", "prefers the first"]
    return Cells(["judge", "candidate", "win rate", *trust, "words / reference", "requests", "tokens"], rows, left=2)


def validation_cells(validations: Mapping[str, Mapping[str, Any]]) -> Cells:
    """One row per data set that was checked."""
    figures = ["rows", "expectations", "failed", "warnings"]
    rows = [[name, *(f"{found[figure]:,}" for figure in figures)] for name, found in validations.items()]
    return Cells(["data set", *figures], rows, left=1)


def markdown_table(cells: Cells, recommended: str | None) -> str:
    """GitHub's Markdown; the recommended candidate's row is bold."""

    def line(values: list[str]) -> str:
        texts = [" ".join(html.escape(value, quote=False).split()).replace("|", "\\|") for value in values]
        return "| " + " | ".join(texts) + " |"

    rule = ["---"] * cells.left + ["---:"] * (len(cells.header) - cells.left)
    rows = [[f"**{value}**" for value in row] if row[0] == recommended else row for row in cells.rows]
    return "\n".join([line(cells.header), line(rule), *map(line, rows)]) + "\n"


def terminal_table(cells: Cells, recommended: str | None) -> Table:
    """The table for rich's console; the recommended candidate's row is bold and green."""
    table = Table(header_style="bold")
    for number, name in enumerate(cells.header):
        table.add_column(escape(name), justify="left" if number < cells.left else "right")
    for row in cells.rows:
        table.add_row(*map(escape, row), style="bold green" if row[0] == recommended else None)
    return table


def wide_table(sweep_results: pd.DataFrame, tax_results: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per candidate, not rounded; each task has columns `<task>/<figure>`, each metric of the tax
    `tax/<task>/<metric>` and the same with `/difference`."""
    wide = overall_rows(sweep_results).drop(columns="task")
    for task in task_names(sweep_results):
        single = sweep_results[sweep_results["task"] == task].set_index("candidate")
        for column in METRICS:
            wide[f"{task}/{column}"] = wide["candidate"].map(single[column])
    for (task, metric), by_candidate in _by_metric(tax_results).items():
        name = f"tax/{task}/{metric}"
        wide[name] = wide["candidate"].map({one: row.value for one, row in by_candidate.items()})
        wide[f"{name}/difference"] = wide["candidate"].map({one: row.difference for one, row in by_candidate.items()})
    return wide


def candidate_metrics(sweep_results: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Each candidate's figures over all tasks, not rounded, by name: DVC shows nothing of a list. None for NaN."""
    rows = overall_rows(sweep_results).set_index("candidate")
    return {name: {metric: number(row[metric]) for metric in METRICS} for name, row in rows.iterrows()}


def number(value: float) -> float | None:
    """A figure for JSON, which has no NaN."""
    return None if math.isnan(value) else float(value)
