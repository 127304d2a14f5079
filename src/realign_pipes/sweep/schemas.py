"""The columns of the sweep's frames, with their pandas dtypes: the only lists of them. Shares are in [0, 1]."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

GENERATIONS = {
    "candidate": "str",
    "kind": "str",  # a name in `sweep.kinds.KINDS`
    "alpha": "float64",  # NaN for a kind without one; of close_bias its bias
    "plausibility": "float64",  # beta of the mask on implausible tokens; 0 without one
    "engine": "str",  # what drew it: engine, version and dtype
    "task": "str",
    "problem_id": "str",
    "sample": "int64",
    "completion": "str",
    "completion_tokens": "int64",
    "finished": "bool",  # False where the token limit cut it off
    "correct": "boolean",  # missing where the task has no answers
    "seconds": "float64",  # of all of the candidate's completions, without loading; in the slowest process
}
"""One row per completion."""

BUDGET_GENERATIONS = {
    **GENERATIONS,  # without alpha, which follows the budget
    "budget": "int64",  # tokens of a whole completion
}
"""One row per completion inside a token budget."""

SWEEP_RESULTS = {
    "candidate": "str",
    "kind": "str",
    "alpha": "float64",  # NaN for a kind without one; of close_bias its bias
    "plausibility": "float64",  # beta of the mask on implausible tokens; 0 without one
    "engine": "str",  # what drew its completions: engine, version and dtype
    "task": "str",  # `all` for the mean over tasks
    "problems": "int64",  # for `all` the sum over tasks
    "samples": "int64",  # per problem; for `all` the most of a task
    "pass_at_1": "float64",  # mean over problems of the mean over samples; NaN for a task without answers
    "pass_at_1_low": "float64",  # 95 % percentile bootstrap over problems
    "pass_at_1_high": "float64",
    "difference": "float64",  # pass@1 less the reference's
    "difference_low": "float64",  # its one-sided lower bound at 95 % confidence: `bounds.lower_bound`
    "mean_tokens": "float64",
    "token_reduction": "float64",  # relative to the reference
    "truncated": "float64",  # share of completions cut off by the token limit
    "seconds": "float64",  # wall time of the candidate; NaN but for `all`
    "train_seconds": "float64",  # of all trainings that make it from the two given models; NaN where it is not known
    "bytes": "float64",  # on disk, of the weights that it loads besides the reference's; DeRa and merge: the aligned's
    "models": "int64",  # in memory
    "kv_streams": "int64",  # KV caches of a completion
    "passes": "int64",  # through the layers for each token; InRa's are one at alpha 0 and 1
}
"""One row per candidate (a kind, an alpha and a plausibility) and task, and one per candidate for all tasks: each
figure's plain mean over them. pass@1 and what follows from it are means over the tasks that have answers; NaN if none
has."""

BUDGET_RESULTS = {
    "candidate": "str",
    "kind": "str",
    "plausibility": "float64",  # beta of the mask where InRa mixes its streams; 0 without one
    "budget": "int64",
    "pass_at_1": "float64",
    "pass_at_1_low": "float64",
    "pass_at_1_high": "float64",
    "difference": "float64",  # pass@1 less that of plain truncation at the same budget
    "difference_low": "float64",  # 95 % paired bootstrap
    "difference_high": "float64",
    "forced_difference": "float64",  # pass@1 less that of forced closing at the same budget
    "forced_difference_low": "float64",  # 95 % paired bootstrap
    "forced_difference_high": "float64",
    "mean_tokens": "float64",
    "truncated": "float64",  # share of completions cut off by the budget
}
"""One row per candidate inside a token budget, each figure the plain mean over tasks."""

TAX_RESULTS = {
    "candidate": "str",
    "kind": "str",
    "alpha": "float64",  # NaN for a kind without one
    "task": "str",  # of lm-evaluation-harness: a task, or a group of tasks that has a mean of its own
    "metric": "str",  # the harness's name of it, and behind a slash its filter's where it has one
    "value": "float64",
    "stderr": "float64",  # the harness's standard error; NaN where it has none
    "difference": "float64",  # value less the reference's
    "problems": "int64",  # that were asked
}
"""The alignment tax: one row per candidate, task and metric."""


TURNS_RESULTS = {
    "alphas": "str",  # by turn
    "turn": "int64",  # from 1; 0 for all of a conversation's turns together
    "conversations": "int64",
    "followed": "float64",  # share of the replies that are as expected
    "low": "float64",  # 95 % percentile bootstrap over conversations
    "high": "float64",
    "difference": "float64",  # less that of the first list of alphas
    "difference_low": "float64",  # 95 % paired bootstrap
    "difference_high": "float64",
    "words": "float64",  # of a reply without its thinking, the mean; for turn 0 of all of them
}
"""Conversations: one row per list of alphas and turn, and one for all turns."""


SCORES = {
    "candidate": "str",
    "task": "str",
    "problem_id": "str",
    "sample": "int64",
    "metric": "str",
    "score": "float64",
}
"""One row per completion and metric; none where a metric does not apply to the problem."""

METRIC_RESULTS = {
    "candidate": "str",
    "kind": "str",
    "alpha": "float64",  # NaN for a kind without one
    "plausibility": "float64",
    "metric": "str",
    "task": "str",  # `all` for the mean over the tasks that have the metric
    "problems": "int64",  # that have it; for `all` the sum over tasks
    "mean": "float64",  # over problems of the mean over samples
    "low": "float64",  # 95 % percentile bootstrap over problems
    "high": "float64",
    "difference": "float64",  # the mean less the reference's
    "difference_low": "float64",  # 95 % paired bootstrap
    "difference_high": "float64",
}
"""One row per candidate, metric and task, and one per candidate and metric for all tasks."""


VERDICTS = {
    "candidate": "str",
    "task": "str",
    "problem_id": "str",
    "sample": "int64",
    "candidate_first": "bool",  # which of the two answers the judge read first
    "winner": "str",  # candidate, reference, tie or unreadable
    "text": "str",  # the judge's answer, with its reason
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
}
"""One row per verdict of a judge."""

JUDGE_RESULTS = {
    "judge": "str",
    "candidate": "str",
    "win_rate": "float64",  # over pairs and orders; a tie is a half
    "ties": "float64",  # shares of the verdicts
    "unreadable": "float64",  # counted as ties
    "agreement": "float64",  # share of pairs in which both orders have the same winner; NaN if none can be read
    "first_preferred": "float64",  # share of the verdicts with a winner that prefer the answer read first
    "words": "float64",  # of an answer, the mean
    "reference_words": "float64",
    "requests": "int64",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
}
"""One row per judge and candidate but the reference."""


def conform(frame: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """`frame` with exactly the `columns`, in their order and dtypes. KeyError for one that it lacks."""
    return frame.astype(dict(columns))[list(columns)]
