"""Which candidate to take: one half of the problems chooses it, the other half confirms it.

Also the few figures by which experiments are compared.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from realign_pipes.reporting.tables import NONE, Cells, number, overall_rows, percent, points, tokens_text
from realign_pipes.sweep.bounds import CONFIDENCE, Floats, problems_needed
from realign_pipes.sweep.choosing import Rule, confirmed, halves, order_candidates
from realign_pipes.sweep.kinds import KINDS
from realign_pipes.sweep.metrics import Answers, Generations, Values, compare, has_answers, read_answers


def recommend(
    generations: Generations, margin: float, *, bootstrap_samples: int, bootstrap_seed: int
) -> dict[str, Any]:
    """The candidate with the largest saving of tokens that is confirmed not to lose more than `margin` of pass@1.

    `sweep.choosing` says how one half of the problems orders the candidates and the other half confirms them. All
    figures are of the confirming half, which had no part in the choice. The reference is recommended where nothing
    saves tokens or nothing is confirmed.

    Args:
        generations: what `summarise_sweep` takes.
        margin: a share: 0.02 is 2 points.
        bootstrap_samples, bootstrap_seed: of the resamples that bound savings.

    Returns: plain data for JSON.
        `candidate`, `kind`, `alpha` (or None), `sentence`, `margin`, `confidence`.
        `pass_at_1`, `mean_tokens`, `token_reduction`, `difference`, `difference_low` of the candidate, on the
        confirming half, and `reference_pass_at_1`, `reference_mean_tokens`.
        `graded_tasks`: how many tasks have answers; without any, pass@1 is None and the reference is recommended.
        `survived`: whether a candidate was confirmed. `chosen_on`, `confirmed_on`: the number of problems in each half.
        `smallest_task`, the number of problems of the smallest task, and `problems_needed`, how many it would need for
        a candidate that loses none of them to be confirmed; None if it has as many, or if the margin is 0.
        `steps`: the candidates in the order in which they were tested, each with `candidate`, `confirmed`, and its
        figures `chosen_on` the one half and `confirmed_on` the other.
        `tasks`: by name, the same for each task's problems alone, but for what is common to all, with `overall`, the
        figures there of the candidate recommended for all tasks, and what that one gives away: `tokens_given_away`
        per completion and `pass_at_1_given_away`. Negative where the task's own candidate is the worse one. Each
        task's recommendation has its own 95 %.

    Raises:
        InputError: what `summarise_sweep` refuses.
    """
    answers = read_answers(generations)
    rule = Rule(margin, bootstrap_samples, bootstrap_seed)
    choosing, confirming = halves(answers)
    overall = _recommend_for(answers, choosing.values, confirming.values, rule)
    chosen = _row(answers, overall["candidate"])
    tasks = {}
    for task in answers.values:
        one = _recommend_for(answers, {task: choosing.values[task]}, {task: confirming.values[task]}, rule)
        same = _figures({task: confirming.values[task]}, answers.reference)[chosen]
        tasks[task] = one | {
            "overall": same,
            "tokens_given_away": same["mean_tokens"] - one["mean_tokens"],
            "pass_at_1_given_away": None if one["pass_at_1"] is None else one["pass_at_1"] - same["pass_at_1"],
        }
    return overall | {
        "sentence": _sentence(overall, margin),
        "margin": margin,
        "confidence": CONFIDENCE,
        "tasks": tasks,
    }


def _recommend_for(
    answers: Answers, choosing: Mapping[str, Values], confirming: Mapping[str, Values], rule: Rule
) -> dict[str, Any]:
    """What the problems of one task or several recommend."""
    reference, about = answers.reference, answers.about
    enough = all(values["correct"].shape[1] > 0 for values in choosing.values())  # a task of one problem has no halves
    ordered = order_candidates(choosing, reference, about["alpha"].to_numpy(float), rule) if enough else []
    passed = confirmed(ordered, confirming, reference, rule)
    chosen = passed[-1] if passed else reference
    before = _figures(choosing, reference) if ordered else []
    after = _figures(confirming, reference)
    graded = sum(map(has_answers, confirming.values()))
    needed = problems_needed(rule.margin, graded) if graded else None
    confirmed_on_smallest = min(values["correct"].shape[1] for values in confirming.values())
    smallest = min(
        first["correct"].shape[1] + second["correct"].shape[1]
        for first, second in zip(choosing.values(), confirming.values(), strict=True)
    )
    kind, alpha = about.loc[chosen, "kind"], float(about.loc[chosen, "alpha"])
    return {
        "candidate": about.loc[chosen, "candidate"],
        "kind": kind,
        "alpha": None if math.isnan(alpha) else alpha,
        "survived": bool(passed),
        "graded_tasks": graded,
        **after[chosen],
        "reference_pass_at_1": after[reference]["pass_at_1"],
        "reference_mean_tokens": after[reference]["mean_tokens"],
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


def headline(sweep_results: pd.DataFrame, recommendation: Mapping[str, Any]) -> dict[str, Any]:
    """The figures by which experiments are compared, for `dvc metrics show`: what it prints fits on a line.

    `candidate`, `pass_at_1` and `mean_tokens` are the recommended candidate's, `reference_pass_at_1` and
    `reference_mean_tokens` the reference's, all on the confirming half. `<method>_token_reduction`, for each method
    that trains (`trra`, with further rounds; `inra`), is the largest saving within the margin on all problems, 0 where
    none saves tokens: an experiment with one method shows even where another is recommended.
    """
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
    figures = ["candidate", "pass_at_1", "mean_tokens", "reference_pass_at_1", "reference_mean_tokens"]
    return {figure: recommendation[figure] for figure in figures} | {
        name: max(saving, 0.0) for name, saving in savings.items()
    }


def step_cells(recommendation: Mapping[str, Any]) -> Cells:
    """The candidates in the order in which they were tested, with what either half of the problems said."""
    rows = [
        [
            step["candidate"],
            f"{percent(before['difference'])} points",
            f"{percent(before['token_reduction'])} %",
            f"{percent(after['difference'])} points",
            f"{percent(after['difference_low'])} points",
            f"{percent(after['token_reduction'])} %",
            "yes" if step["confirmed"] else "no",
        ]
        for step in recommendation["steps"]
        for before, after in [(step["chosen_on"], step["confirmed_on"])]
    ]
    choosing = ["pass@1 when choosing", "reduction"]
    return Cells(["candidate", *choosing, "pass@1 when confirming", "at least", "reduction", "confirmed"], rows, left=1)


def task_recommendation_cells(recommendation: Mapping[str, Any]) -> Cells:
    """Each task's own recommendation, and what the candidate recommended for all tasks gives away there."""
    rows = [
        [
            task,
            _undecided(one) if _is_undecided(one) else one["candidate"],
            f"{percent(one['pass_at_1'])} / {percent(one['reference_pass_at_1'])}",
            f"{tokens_text(one['mean_tokens'])} / {tokens_text(one['reference_mean_tokens'])}",
            f"{percent(one['token_reduction'])} %" if one["survived"] else NONE,
            f"{percent(one['difference_low'])} points" if one["survived"] else NONE,
            f"{percent(one['overall']['pass_at_1'])} / {tokens_text(one['overall']['mean_tokens'])}",
            tokens_text(one["tokens_given_away"]).replace("-", "−"),
            f"{percent(one['pass_at_1_given_away'])} points",
        ]
        for task, one in recommendation["tasks"].items()
    ]
    own = ["task", "use", "pass@1 % / reference", "tokens / reference", "reduction", "at least"]
    for_all = [f"{recommendation['candidate']}: pass@1 % / tokens", "gives away: tokens", "pass@1"]
    return Cells([*own, *for_all], rows, left=2)


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


def _figures(tasks: Mapping[str, Values], reference: int) -> list[dict[str, Any]]:
    """The recommendation's figures of every candidate; None for pass@1 where no task has answers."""
    names = ["pass_at_1", "mean_tokens", "token_reduction", "difference", "difference_low"]
    figures: dict[str, Floats] = compare(list(tasks.values()), reference)
    rows = np.stack([figures[name] for name in names], axis=1).tolist()
    return [{name: number(value) for name, value in zip(names, row, strict=True)} for row in rows]


def _sentence(found: Mapping[str, Any], margin: float) -> str:
    """The recommendation for all tasks in words."""
    allowed = f"allowed: {points(margin)}"
    chosen_on, confirmed_on = _problem_count(found["chosen_on"]), _problem_count(found["confirmed_on"])
    if found["survived"]:
        kind = KINDS[found["kind"]]
        use, it = f"Use {found['candidate']}: ", "it"
        if kind.alternative or not kind.trains:
            why = "An alternative to the paper's methods does best" if kind.trains else "No training is needed"
            named = "" if found["candidate"] == kind.name else f" ({kind.label})"
            use, it = f"{why}: use {found['candidate']}{named}. ", "It"
        return (
            f"{use}{it} saves {percent(found['token_reduction'])} % of the reference's tokens "
            f"({tokens_text(found['mean_tokens'])} instead of {tokens_text(found['reference_mean_tokens'])} per "
            f"completion) at pass@1 {percent(found['pass_at_1'])} % against {percent(found['reference_pass_at_1'])} %, "
            f"and with {100 * CONFIDENCE:g} % confidence {_bound_text(found['difference_low'])} ({allowed}). It was "
            f"chosen on {chosen_on}; these figures are from {confirmed_on} that had no part in the choice. Of savings "
            f"that do not differ with {100 * CONFIDENCE:g} % confidence, the higher pass@1 was taken, then the smaller "
            "move."
        )
    keep = f"Keep the reference ({found['candidate']}): "
    if not found["graded_tasks"]:
        return f"{keep}no task has answers, so there is no pass@1 to lose, and nothing to choose a candidate by."
    if found["steps"]:
        first = found["steps"][0]
        before, after = first["chosen_on"], first["confirmed_on"]
        return (
            f"{keep}no saving was confirmed. {first['candidate']} was chosen on {chosen_on}, where it saves "
            f"{percent(before['token_reduction'])} % of the tokens at pass@1 {percent(before['pass_at_1'])} %; on "
            f"{confirmed_on} that had no part in the choice it saves {percent(after['token_reduction'])} %, and with "
            f"{100 * CONFIDENCE:g} % confidence {_bound_text(after['difference_low'])} ({allowed})."
            f"{_too_few_text(found, margin)}"
        )
    if found["chosen_on"] == 0:
        return f"{keep}choosing and confirming need at least two problems of each task."
    return (
        f"{keep}on {chosen_on}, no candidate saves tokens and loses at most {points(margin)} of pass@1, so there was "
        "nothing to confirm on the others."
    )


def _too_few_text(found: Mapping[str, Any], margin: float) -> str:
    """What more problems would show; nothing where there are enough."""
    if found["problems_needed"] is None:
        return ""
    return (
        f" There are too few problems to tell: the smallest task has {found['smallest_task']:,}, and confirming a loss "
        f"of at most {points(margin)} takes {found['problems_needed']:,} of each task, even for a candidate that loses "
        "none of them."
    )


def _problem_count(number: int) -> str:
    return f"{number:,} problem" if number == 1 else f"{number:,} problems"


def _bound_text(difference_low: float) -> str:
    if difference_low >= 0:
        return "its pass@1 is not below the reference's"
    return f"its pass@1 is at most {points(-difference_low)} below the reference's"
