"""Which candidate to take: the largest saving of tokens that costs no more correctness than the user allows.

Also the few figures by which experiments are compared.
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from realign_pipes.reporting.tables import overall_rows, percent, tokens_text
from realign_pipes.sweep.metrics import CONFIDENCE, is_reference


def recommend(sweep_results: pd.DataFrame, margin: float) -> dict[str, Any]:
    """The candidate that saves the most tokens among those not worse than the reference by more than `margin`.

    "Not worse" is a test of non-inferiority: the one-sided 95 % lower bound (paired bootstrap) on the difference in
    pass@1 from the reference is at least -margin (a share: 0.02 is 2 points). If no candidate that saves tokens passes
    it, the reference is recommended.

    Returns: plain data for JSON: `candidate`, `kind`, `alpha` (or None), `sentence`, `margin`, `confidence`,
    `pass_at_1`, `mean_tokens`, `token_reduction`, `difference`, `difference_low`, `reference_pass_at_1`,
    `reference_mean_tokens`.
    """
    rows = overall_rows(sweep_results)
    reference = rows[is_reference(rows)].iloc[0]
    saving = _saving(rows)
    qualified = _qualified(rows, margin)
    if len(qualified):
        chosen = qualified.sort_values(["token_reduction", "pass_at_1"], ascending=False, kind="stable").iloc[0]
        sentence = (
            f"Use {chosen['candidate']}: it saves {percent(chosen['token_reduction'])} % of the reference's tokens "
            f"({tokens_text(chosen['mean_tokens'])} instead of {tokens_text(reference['mean_tokens'])} per completion) "
            f"at pass@1 {percent(chosen['pass_at_1'])} % against {percent(reference['pass_at_1'])} %, and with "
            f"{100 * CONFIDENCE:g} % confidence {_bound_text(chosen['difference_low'])} (allowed: {_points(margin)})."
        )
    else:
        chosen = reference
        sentence = f"Keep the reference ({reference['candidate']}): " + _why_none(saving, margin)
    figures = ["pass_at_1", "mean_tokens", "token_reduction", "difference", "difference_low"]
    return {
        "candidate": chosen["candidate"],
        "kind": chosen["kind"],
        "alpha": None if math.isnan(chosen["alpha"]) else float(chosen["alpha"]),
        "sentence": sentence,
        "margin": margin,
        "confidence": CONFIDENCE,
        **{figure: float(chosen[figure]) for figure in figures},
        "reference_pass_at_1": float(reference["pass_at_1"]),
        "reference_mean_tokens": float(reference["mean_tokens"]),
    }


def headline(sweep_results: pd.DataFrame, recommendation: Mapping[str, Any]) -> dict[str, Any]:
    """The figures by which experiments are compared, for `dvc metrics show`: what it prints fits on a line.

    `candidate`, `pass_at_1` and `mean_tokens` are the recommended candidate's, `reference_pass_at_1` and
    `reference_mean_tokens` the reference's. `trra_token_reduction` and `inra_token_reduction` are the largest saving of
    a TrRa student (of a further round too) and of an alpha of InRa within the recommendation's margin, 0 where none
    saves tokens: an experiment with one of them shows even where the other is recommended.
    """
    qualified = _qualified(overall_rows(sweep_results), recommendation["margin"])
    savings = {
        f"{method}_token_reduction": float(max(qualified[qualified["kind"].isin(kinds)]["token_reduction"], default=0))
        for method, kinds in (("trra", ["trra", "trra_iter"]), ("inra", ["inra"]))
    }
    figures = ["candidate", "pass_at_1", "mean_tokens", "reference_pass_at_1", "reference_mean_tokens"]
    return {figure: recommendation[figure] for figure in figures} | savings


def _saving(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[~is_reference(rows) & (rows["token_reduction"] > 0)]


def _qualified(rows: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Candidates that save tokens and are not worse than the reference by more than the margin."""
    saving = _saving(rows)
    return saving[saving["difference_low"] >= -margin]


def _points(share: float) -> str:
    """A difference of shares in percentage points."""
    number = percent(share)
    return f"{number} point" if number == "1.0" else f"{number} points"


def _bound_text(difference_low: float) -> str:
    if difference_low >= 0:
        return "its pass@1 is not below the reference's"
    return f"its pass@1 is at most {_points(-difference_low)} below the reference's"


def _why_none(saving: pd.DataFrame, margin: float) -> str:
    if saving.empty:
        return "no candidate of this sweep saves tokens."
    nearest = saving.loc[saving["difference_low"].idxmax()]
    return (
        f"no candidate that saves tokens is within {_points(margin)} of the reference's pass@1 with "
        f"{100 * CONFIDENCE:g} % confidence; the closest, {nearest['candidate']}, saves "
        f"{percent(nearest['token_reduction'])} % of the tokens and may lose {_points(-nearest['difference_low'])}."
    )
