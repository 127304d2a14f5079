"""What a sweep can be judged by: pass@1 and tokens, and what graders say; each with a direction and a unit.

A recommendation takes two of them: the one to gain, and the one that may lose no more than a margin.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from realign_pipes.sweep.bounds import CONFIDENCE, Floats, bootstrap_means, lower_bound, seed_of
from realign_pipes.sweep.metrics import Values

Unit = Literal["share", "count", "number"]
"""`share`: in [0, 1], shown in percent, and its changes in points. `count`: at least 0, and its changes are shares of
the reference's. `number`: anything else; its changes are differences."""


@dataclass(frozen=True)
class Metric:
    """A figure of every completion, or of some of them; a candidate's is the mean over problems, then over tasks."""

    name: str
    """As parameters name it."""
    label: str
    """In tables and sentences."""
    unit: Unit
    higher_is_better: bool
    about: str
    """What it is, in a sentence for the report."""
    column: str
    """Of `Values`."""
    key: str
    """What results call its mean."""
    gain_key: str
    """What results call what is gained of it."""
    axis: str
    """The title of an axis."""

    @property
    def sign(self) -> float:
        """1 where more is better, -1 where less is."""
        return 1.0 if self.higher_is_better else -1.0


def graded(name: str, label: str, unit: Unit, about: str, *, higher_is_better: bool) -> Metric:
    """A metric that a grader gives."""
    axis = f"{label}, %" if unit == "share" else label
    return Metric(name, label, unit, higher_is_better, about, name, name, f"{name}_gain", axis)


PASS_AT_1 = Metric("pass_at_1", "pass@1", "share", True, "The share of correct completions.", "correct", "pass_at_1",
                   "pass_at_1_gain", "pass@1, %")  # fmt: skip
TOKENS = Metric("tokens", "tokens", "count", False, "Generated tokens of a completion.", "completion_tokens",
                "mean_tokens", "token_reduction", "mean tokens per completion")  # fmt: skip


def defined(tasks: Mapping[str, Values], metric: Metric, reference: int) -> dict[str, Floats]:
    """A metric's values by task: [candidates, problems], for the problems for which it is defined.

    Those are the ones where the reference's value is not NaN. Tasks with none of them are left out; a candidate that
    was not graded stays NaN.
    """
    values = {}
    for task, columns in tasks.items():
        of_task = columns[metric.column]
        kept = ~np.isnan(of_task[reference])
        if kept.any():
            values[task] = of_task[:, kept]
    return values


def mean_of(values: Mapping[str, Floats]) -> Floats:
    """[candidates]: the plain mean over tasks of the means over problems."""
    mean: Floats = np.mean([of_task.mean(axis=1) for of_task in values.values()], axis=0)
    return mean


def gain_of(values: Mapping[str, Floats], reference: int, metric: Metric) -> Floats:
    """[candidates]: by how much each is better than the reference, the plain mean over tasks; negative for a loss.

    Of a count it is a share of the reference's mean, of anything else a difference.
    """
    return _gain({task: of_task.mean(axis=1) for task, of_task in values.items()}, reference, metric)


def resampled_gain(values: Mapping[str, Floats], reference: int, metric: Metric, samples: int, seed: int) -> Floats:
    """[candidates, samples]: the same on resampled problems of each task, the same ones for every candidate."""
    means = {task: bootstrap_means(of_task, samples, seed_of(seed, task)) for task, of_task in values.items()}
    return _gain(means, reference, metric)


def gain_low(values: Mapping[str, Floats], reference: int, metric: Metric, samples: int, seed: int) -> Floats:
    """[candidates]: what `gain_of` is not below, at 95 % confidence and one-sided; 0 for the reference.

    Of a share it is `bounds.lower_bound`, which suits losses that are rare and large. Of anything else, whose losses
    have no such shape and no bound, it is the percentile of a paired bootstrap.
    """
    if metric.unit == "share":
        low = lower_bound([metric.sign * (of_task - of_task[reference]) for of_task in values.values()])
    else:
        low = np.quantile(resampled_gain(values, reference, metric, samples, seed), 1 - CONFIDENCE, axis=1)
    low[reference] = 0
    return low


def _gain(means: Mapping[str, Floats], reference: int, metric: Metric) -> Floats:
    if metric.unit == "count":
        with np.errstate(divide="ignore", invalid="ignore"):  # a reference that counts 0 leaves no share
            gains: Floats = np.mean([metric.sign * (one / one[reference] - 1) for one in means.values()], axis=0)
        return gains
    mean = np.mean(list(means.values()), axis=0)
    difference: Floats = metric.sign * (mean - mean[reference])
    return difference
