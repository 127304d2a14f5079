"""Scores of completions in numbers: each metric's mean with its interval, and its difference to the reference's.

The bootstrap is that of the sweep: it resamples problems, the same ones for every candidate, so differences are paired.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from realign_pipes.errors import InputError
from realign_pipes.sweep.bounds import Floats, bootstrap_means, interval, seed_of
from realign_pipes.sweep.measures import PASS_AT_1, TOKENS, Metric, defined, mean_of
from realign_pipes.sweep.metrics import ALL_TASKS, Answers, Values
from realign_pipes.sweep.schemas import METRIC_RESULTS, SCORES, conform

NO_SCORES = pd.DataFrame(columns=list(SCORES))


def with_scores(answers: Answers, scores: pd.DataFrame, metrics: Iterable[Metric]) -> Answers:
    """The answers with a column of values for each of the `metrics`: [candidates, problems], NaN where it has none.

    `scores` has the columns SCORES. A problem's value is the mean over its samples. InputError for a metric that
    `scores` does not have, for a candidate that they do not know, as the sweep has changed since, and for one that was
    not scored on the problems that the reference was.
    """
    values: dict[str, dict[str, Floats]] = {task: dict(columns) for task, columns in answers.values.items()}
    names = answers.about["candidate"].tolist()
    for metric in metrics:
        if metric in (PASS_AT_1, TOKENS):  # the answers have them
            continue
        of_metric = scores[scores["metric"] == metric.name]
        if of_metric.empty:
            raise InputError(f"scores hold no metric {metric.name}: run the stage scores again, with a grader of it.")
        scored = set(scores["candidate"])
        if strange := [name for name in names if name not in scored]:
            raise InputError(
                f"scores hold nothing of {strange[0]}, a candidate of the sweep: run the stage scores again."
            )
        means = of_metric.groupby(["task", "candidate", "problem_id"])["score"].mean().unstack("problem_id")
        for task, problems in answers.problems.items():
            rows = pd.MultiIndex.from_product([[task], names])
            table = means.reindex(index=rows, columns=problems).to_numpy(float)
            _check_scored(table, answers.reference, names, f"{metric.name} of task {task}")
            values[task][metric.column] = table
    return replace(answers, values=dict[str, Values](values))


def _check_scored(table: Floats, reference: int, names: Sequence[str], what: str) -> None:
    """A candidate has the values that the reference has, or none."""
    missing = np.isnan(table)
    differs = (missing != missing[reference]).any(axis=1) & ~missing.all(axis=1)
    if differs.any():
        raise InputError(f"{what}: {names[int(differs.argmax())]} was not scored on the problems of "
                         f"{names[reference]}. Run the stage scores again.")  # fmt: skip


def summarise_scores(
    answers: Answers, scores: pd.DataFrame, metrics: Sequence[Metric], *, bootstrap_samples: int, bootstrap_seed: int
) -> pd.DataFrame:
    """Each candidate's mean of each metric, for each task and over all of them: a frame with METRIC_RESULTS.

    `low` and `high` are the 95 % percentile bootstrap over problems, `difference` is the mean less the reference's,
    with those of the paired bootstrap. Figures for all tasks are plain means over the tasks that have the metric.
    Candidates without a metric have no row of it. InputError: what `with_scores` refuses.
    """
    answers = with_scores(answers, scores, metrics)
    frames = []
    for number, metric in enumerate(metrics):
        tasks = defined(answers.values, metric, answers.reference)
        means = {
            task: bootstrap_means(values, bootstrap_samples, seed_of(bootstrap_seed, task))
            for task, values in tasks.items()
        }
        groups = {task: [task] for task in tasks} | ({ALL_TASKS: list(tasks)} if tasks else {})
        for task, joined in groups.items():
            mean = mean_of({one: tasks[one] for one in joined})
            resampled = np.mean([means[one] for one in joined], axis=0)
            low, high = interval(resampled)
            difference_low, difference_high = interval(resampled - resampled[answers.reference])
            frame = answers.about.assign(
                place=number,
                metric=metric.name,
                task=task,
                problems=sum(tasks[one].shape[1] for one in joined),
                mean=mean,
                low=low,
                high=high,
                difference=mean - mean[answers.reference],
                difference_low=difference_low,
                difference_high=difference_high,
            )
            frames.append(frame[frame["mean"].notna()])
    results = pd.concat(frames).rename_axis("row").sort_values(["row", "place"], kind="stable")
    return conform(results.reset_index(drop=True), METRIC_RESULTS)
