"""Which candidate to take: one half of the problems chooses it, the other half confirms it.

Also the few figures by which experiments are compared.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from realign_pipes.reporting.tables import NONE, Cells, overall_rows, percent, points, tokens_text
from realign_pipes.sweep.choosing import Rule, confirmed, halves, order_candidates
from realign_pipes.sweep.kinds import KINDS
from realign_pipes.sweep.metrics import CONFIDENCE, Answers, Floats, Generations, Values, compare, read_answers


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
        `survived`: whether a candidate was confirmed. `chosen_on`, `confirmed_on`: the number of problems in each half.
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
            "pass_at_1_given_away": one["pass_at_1"] - same["pass_at_1"],
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
    enough = _problems(choosing) > 0 and all(_problems({task: values}) > 0 for task, values in choosing.items())
    ordered = order_candidates(choosing, reference, about["alpha"].to_numpy(float), rule) if enough else []
    passed = confirmed(ordered, confirming, reference, rule)
    chosen = passed[-1] if passed else reference
    before = _figures(choosing, reference) if ordered else []
    after = _figures(confirming, reference)
    kind, alpha = about.loc[chosen, "kind"], float(about.loc[chosen, "alpha"])
    return {
        "candidate": about.loc[chosen, "candidate"],
        "kind": kind,
        "alpha": None if math.isnan(alpha) else alpha,
        "survived": bool(passed),
        **after[chosen],
        "reference_pass_at_1": after[reference]["pass_at_1"],
        "reference_mean_tokens": after[reference]["mean_tokens"],
        "chosen_on": _problems(choosing),
        "confirmed_on": _problems(confirming),
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
