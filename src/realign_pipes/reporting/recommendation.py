"""Which candidate to take: one half of the problems chooses it, the other half confirms it.

Also the few figures by which experiments are compared.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from realign_pipes.errors import InputError
from realign_pipes.reporting.tables import NONE, Cells, overall_rows, value_text
from realign_pipes.reporting.wording import (
    bound_text,
    change_text,
    full_gain,
    gain_cell,
    gain_header,
    gain_noun,
    gains,
    rule_text,
    short_gain,
)
from realign_pipes.sweep.bounds import CONFIDENCE, problems_needed
from realign_pipes.sweep.choosing import Rule, confirmed, halves, order_candidates
from realign_pipes.sweep.kinds import KINDS
from realign_pipes.sweep.measures import PASS_AT_1, TOKENS, Metric, defined, gain_of, mean_of
from realign_pipes.sweep.metrics import Answers, Generations, Values, read_answers
from realign_pipes.sweep.scores import NO_SCORES, with_scores


def recommend(
    generations: Generations,
    margin: float,
    *,
    bootstrap_samples: int,
    bootstrap_seed: int,
    gain: Metric = TOKENS,
    loss: Metric = PASS_AT_1,
    scores: pd.DataFrame = NO_SCORES,
) -> dict[str, Any]:
    """The candidate with the largest gain that is confirmed not to lose more than `margin` of another metric.

    By default what is gained is a saving of tokens, and what may be lost is pass@1. `sweep.choosing` says how one half
    of the problems orders the candidates and the other half confirms them. All figures are of the confirming half,
    which had no part in the choice. The reference is recommended where nothing gains or nothing is confirmed.

    Args:
        generations: what `summarise_sweep` takes.
        margin: of a share (0.02 is 2 points) or a count a share, of another number a difference.
        bootstrap_samples, bootstrap_seed: of the resamples that bound gains.
        gain, loss: two metrics. Each counts on the problems for which it is defined; they need not be the same.
        scores: a frame with the columns SCORES, for metrics other than tokens and pass@1.

    Returns: plain data for JSON.
        `candidate`, `kind`, `alpha` (or None), `sentence`, `margin`, `confidence`.
        `pass_at_1` and `mean_tokens` (of other metrics: their names), `token_reduction` (`<gain>_gain`), `difference`,
        `difference_low` of the candidate, on the confirming half, and `reference_pass_at_1`, `reference_mean_tokens`.
        `difference` and its lower bound are of `loss`, and negative for a loss whatever its direction.
        `graded_tasks`: how many tasks have what may be lost; without any, as where no task has answers, its figures are
        None and the reference is recommended.
        `survived`: whether a candidate was confirmed. `chosen_on`, `confirmed_on`: the number of problems in each half.
        `smallest_task`, the number of problems of the smallest task, and `problems_needed`, how many it would need for
        a candidate that loses none of them to be confirmed; None if it has as many, or if the margin is 0.
        `steps`: the candidates in the order in which they were tested, each with `candidate`, `confirmed`, and its
        figures `chosen_on` the one half and `confirmed_on` the other.
        `tasks`: by name of those with both metrics, the same for each task's problems alone, but for what is common to
        all, with `overall`, the figures there of the candidate recommended for all tasks, and what that one gives away:
        `tokens_given_away` per completion and `pass_at_1_given_away`, or those of other metrics. Negative where the
        task's own candidate is the worse one. Each task's recommendation has its own 95 %.

    Raises:
        InputError: what `summarise_sweep` refuses, and a metric of a grader that no problem has.
    """
    answers = with_scores(read_answers(generations), scores, [gain, loss])
    rule = Rule(margin, bootstrap_samples, bootstrap_seed, gain, loss)
    for metric in (gain, loss):
        if metric != PASS_AT_1 and not defined(answers.values, metric, answers.reference):
            raise InputError(f"the metric {metric.name} is not defined for any problem, so nothing can be recommended "
                             "by it. Choose others in reporting.gain and reporting.loss.")  # fmt: skip
    choosing, confirming = halves(answers)
    overall = _recommend_for(answers, choosing.values, confirming.values, rule)
    chosen = _row(answers, overall["candidate"])
    tasks = {}
    for task, values in confirming.values.items():
        if not all(defined({task: values}, metric, answers.reference) for metric in (gain, loss)):
            continue
        one = _recommend_for(answers, {task: choosing.values[task]}, {task: values}, rule)
        same = _figures({task: values}, answers.reference, rule)[chosen]
        tasks[task] = one | {
            "overall": same,
            **{
                f"{metric.name}_given_away": metric.sign * (one[metric.key] - same[metric.key]) + 0.0
                for metric in (gain, loss)
            },
        }
    return overall | {
        "sentence": _sentence(overall, rule),
        "margin": margin,
        "confidence": CONFIDENCE,
        "tasks": tasks,
    }


def _recommend_for(
    answers: Answers, choosing: Mapping[str, Values], confirming: Mapping[str, Values], rule: Rule
) -> dict[str, Any]:
    """What the problems of one task or several recommend."""
    reference, about = answers.reference, answers.about
    both = [
        (defined(choosing, metric, reference), defined(confirming, metric, reference))
        for metric in (rule.gain, rule.loss)
    ]
    # A task of one problem has no halves.
    enough = all(first.keys() == second.keys() and len(second) > 0 for first, second in both)
    may_lose = [
        (first[task].shape[1] if task in first else 0, second[task].shape[1])
        for first, second in both[1:]
        for task in second
    ]
    ordered = order_candidates(choosing, reference, about["alpha"].to_numpy(float), rule) if enough else []
    passed = confirmed(ordered, confirming, reference, rule)
    chosen = passed[-1] if passed else reference
    before = _figures(choosing, reference, rule) if ordered else []
    after = _figures(confirming, reference, rule)
    needed = problems_needed(rule.margin, len(may_lose)) if may_lose and rule.loss.unit == "share" else None
    confirmed_on_smallest = min((second for _, second in may_lose), default=0)
    smallest = min((first + second for first, second in may_lose), default=0)
    kind, alpha = about.loc[chosen, "kind"], float(about.loc[chosen, "alpha"])
    return {
        "candidate": about.loc[chosen, "candidate"],
        "kind": kind,
        "alpha": None if math.isnan(alpha) else alpha,
        "survived": bool(passed),
        "graded_tasks": len(may_lose),
        **after[chosen],
        **{f"reference_{metric.key}": after[reference][metric.key] for metric in (rule.loss, rule.gain)},
        "chosen_on": _problems(choosing) if enough else 0,
        "confirmed_on": _problems(confirming),
        "smallest_task": smallest,
        # The half that confirms is the larger one of an odd number.
        "problems_needed": None if needed is None or confirmed_on_smallest >= needed else 2 * needed - 1,
        "steps": [
            {
                "candidate": about.loc[place, "candidate"],
                "confirmed": place in passed,
                "chosen_on": before[place],
                "confirmed_on": after[place],
            }
            for place in ordered[: len(passed) + 1]
        ],
    }


def headline(
    sweep_results: pd.DataFrame, recommendation: Mapping[str, Any], gain: Metric = TOKENS, loss: Metric = PASS_AT_1
) -> dict[str, Any]:
    """The figures by which experiments are compared, for `dvc metrics show`: what it prints fits on a line.

    `candidate`, `pass_at_1` and `mean_tokens` are the recommended candidate's, `reference_pass_at_1` and
    `reference_mean_tokens` the reference's, all on the confirming half. `<method>_token_reduction`, for each method
    that trains (`trra`, with further rounds; `inra`), is the largest saving within the margin on all problems, 0 where
    none saves tokens: an experiment with one method shows even where another is recommended. With two other metrics,
    the names are theirs, and there is none by method.
    """
    names = [metric.key for metric in (loss, gain)]
    figures = ["candidate", *names, *(f"reference_{name}" for name in names)]
    found = {figure: recommendation[figure] for figure in figures}
    if (gain, loss) != (TOKENS, PASS_AT_1):
        return found
    rows = overall_rows(sweep_results)
    within = rows[rows["difference_low"] >= -recommendation["margin"]]
    methods: dict[str, list[str]] = {}
    for kind in KINDS.values():
        if kind.trains and not kind.alternative and not kind.of_budgets:
            methods.setdefault(kind.panel or kind.name, []).append(kind.name)
    savings = {
        f"{method}_token_reduction": float(max(within[within["kind"].isin(kinds)]["token_reduction"], default=0))
        for method, kinds in methods.items()
    }
    return found | {name: max(saving, 0.0) for name, saving in savings.items()}


def step_cells(recommendation: Mapping[str, Any], gain: Metric = TOKENS, loss: Metric = PASS_AT_1) -> Cells:
    """The candidates in the order in which they were tested, with what either half of the problems said."""
    rows = [
        [
            step["candidate"],
            gain_cell(loss, before["difference"]),
            gain_cell(gain, before[gain.gain_key]),
            gain_cell(loss, after["difference"]),
            gain_cell(loss, after["difference_low"]),
            gain_cell(gain, after[gain.gain_key]),
            "yes" if step["confirmed"] else "no",
        ]
        for step in recommendation["steps"]
        for before, after in [(step["chosen_on"], step["confirmed_on"])]
    ]
    gained = gain_header(gain)
    confirming = [f"{loss.label} when confirming", "at least", gained, "confirmed"]
    return Cells(["candidate", f"{loss.label} when choosing", gained, *confirming], rows, left=1)


def task_recommendation_cells(
    recommendation: Mapping[str, Any], gain: Metric = TOKENS, loss: Metric = PASS_AT_1
) -> Cells:
    """Each task's own recommendation, and what the candidate recommended for all tasks gives away there."""

    def values(metric: Metric, one: Mapping[str, Any]) -> str:
        mean, reference = (value_text(metric, one[key], "") for key in (metric.key, f"reference_{metric.key}"))
        return f"{mean} / {reference}"

    rows = [
        [
            task,
            _undecided(one) if _is_undecided(one) else one["candidate"],
            values(loss, one),
            values(gain, one),
            gain_cell(gain, one[gain.gain_key]) if one["survived"] else NONE,
            gain_cell(loss, one["difference_low"]) if one["survived"] else NONE,
            " / ".join(value_text(metric, one["overall"][metric.key], "") for metric in (loss, gain)),
            *(
                gain_cell(metric, given) if metric.unit == "share" else value_text(metric, given).replace("-", "−")
                for metric in (gain, loss)
                for given in [one[f"{metric.name}_given_away"]]
            ),
        ]
        for task, one in recommendation["tasks"].items()
    ]
    named = {metric: f"{metric.label} %" if metric.unit == "share" else metric.label for metric in (gain, loss)}
    own = ["task", "use", *(f"{named[metric]} / reference" for metric in (loss, gain)), gain_header(gain), "at least"]
    candidate = f"{recommendation['candidate']}: {named[loss]} / {named[gain]}"
    return Cells([*own, candidate, f"gives away: {gain.label}", loss.label], rows, left=2)


def _is_undecided(one: Mapping[str, Any]) -> bool:
    """Whether a candidate that saves was not confirmed, where there are too few problems to confirm one like it."""
    return bool(one["steps"]) and not one["survived"] and one["problems_needed"] is not None


def _undecided(one: Mapping[str, Any]) -> str:
    """The reference, where a task has too few problems to confirm anything that does not gain."""
    return f"{one['candidate']} (too few problems to tell: {one['smallest_task']:,} of {one['problems_needed']:,})"


def _row(answers: Answers, candidate: str) -> int:
    return answers.about["candidate"].tolist().index(candidate)


def _problems(tasks: Mapping[str, Values]) -> int:
    return sum(values["correct"].shape[1] for values in tasks.values())


def _figures(tasks: Mapping[str, Values], reference: int, rule: Rule) -> list[dict[str, Any]]:
    """The recommendation's figures of every candidate; None where no problem has the metric."""
    gain, loss = (defined(tasks, metric, reference) for metric in (rule.gain, rule.loss))
    nothing = np.full(len(next(iter(tasks.values()))[TOKENS.column]), np.nan)
    figures = {
        rule.loss.key: mean_of(loss) if loss else nothing,
        rule.gain.key: mean_of(gain) if gain else nothing,
        rule.gain.gain_key: gain_of(gain, reference, rule.gain) if gain else nothing,
        "difference": gain_of(loss, reference, rule.loss) if loss else nothing,
        "difference_low": rule.difference_low(tasks, reference) if loss else nothing,
    }
    rows = np.stack(list(figures.values()), axis=1).tolist()
    return [
        {name: None if math.isnan(value) else value for name, value in zip(figures, row, strict=True)} for row in rows
    ]


def _sentence(found: Mapping[str, Any], rule: Rule) -> str:
    """The recommendation for all tasks in words."""
    gain, loss = rule.gain, rule.loss
    allowed = f"allowed: {change_text(loss, rule.margin)}"
    chosen_on, confirmed_on = _problem_count(found["chosen_on"]), _problem_count(found["confirmed_on"])
    if found["survived"]:
        kind = KINDS[found["kind"]]
        use, it = f"Use {found['candidate']}: ", "it"
        if kind.alternative or not kind.trains:
            why = "An alternative to the paper's methods does best" if kind.trains else "No training is needed"
            named = "" if found["candidate"] == kind.name else f" ({kind.label})"
            use, it = f"{why}: use {found['candidate']}{named}. ", "It"
        gained = full_gain(gain, found[gain.gain_key], found[gain.key], found[f"reference_{gain.key}"])
        return (
            f"{use}{it} {gained} at {loss.label} {value_text(loss, found[loss.key])} against "
            f"{value_text(loss, found[f'reference_{loss.key}'])}, "
            f"and with {100 * CONFIDENCE:g} % confidence {bound_text(loss, found['difference_low'])} ({allowed}). It "
            f"was chosen on {chosen_on}; these figures are from {confirmed_on} that had no part in the choice. "
            f"{rule_text(gain, loss)}"
        )
    keep = f"Keep the reference ({found['candidate']}): "
    if found["steps"]:
        first = found["steps"][0]
        before, after = first["chosen_on"], first["confirmed_on"]
        return (
            f"{keep}no {gain_noun(gain)} was confirmed. {first['candidate']} was chosen on {chosen_on}, where it "
            f"{short_gain(gain, before[gain.gain_key])} at {loss.label} {value_text(loss, before[loss.key])}; on "
            f"{confirmed_on} that had no part in the choice it {short_gain(gain, after[gain.gain_key], again=True)}, "
            f"and with {100 * CONFIDENCE:g} % confidence {bound_text(loss, after['difference_low'])} ({allowed})."
            f"{_too_few_text(found, rule)}"
        )
    if not found["graded_tasks"]:
        return f"{keep}no task has answers, so there is no pass@1 to lose, and nothing to choose a candidate by."
    if found["chosen_on"] == 0:
        return f"{keep}choosing and confirming need at least two problems of each task."
    return (
        f"{keep}on {chosen_on}, no candidate {gains(gain)} and loses at most {change_text(loss, rule.margin)} of "
        f"{loss.label}, so there was nothing to confirm on the others."
    )


def _too_few_text(found: Mapping[str, Any], rule: Rule) -> str:
    """What more problems would show; nothing where there are enough."""
    if found["problems_needed"] is None:
        return ""
    return (
        f" There are too few problems to tell: the smallest task has {found['smallest_task']:,}, and confirming a loss "
        f"of at most {change_text(rule.loss, rule.margin)} takes {found['problems_needed']:,} of each task, even for a "
        "candidate that loses none of them."
    )


def _problem_count(number: int) -> str:
    return f"{number:,} problem" if number == 1 else f"{number:,} problems"
