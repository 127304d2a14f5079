"""The three outcomes of a recommendation, on tables made by hand."""

import json

import numpy as np
import pandas as pd
import pytest

from realign_pipes.reporting.recommendation import headline, recommend


def table(*rows: tuple[str, str, float, float, float, float]) -> pd.DataFrame:
    """(candidate, kind, pass@1, difference_low, mean tokens, token reduction)"""
    columns = ["candidate", "kind", "pass_at_1", "difference_low", "mean_tokens", "token_reduction"]
    results = pd.DataFrame(rows, columns=columns).assign(task="all", alpha=np.nan, plausibility=0.0)
    results["difference"] = results["pass_at_1"] - results["pass_at_1"].iloc[0]
    # a row of a single task must not be looked at
    lure = results.tail(1).assign(candidate="lure", task="chain_sum", token_reduction=0.99, difference_low=0.5)
    return pd.concat([lure, results], ignore_index=True)


REFERENCE = ("reference", "reference", 0.980, 0.0, 89.3, 0.0)
ALIGNED = ("aligned", "aligned", 0.977, -0.012, 73.2, 0.18)
TRRA = ("trra_1.5", "trra", 0.975, -0.018, 64.3, 0.28)
FAR = ("trra_2.0", "trra", 0.927, -0.071, 59.0, 0.339)
LONGER = ("dera_-1", "dera", 0.990, 0.004, 99.0, -0.11)


def test_the_largest_saving_within_the_margin():
    chosen = recommend(table(REFERENCE, ALIGNED, LONGER, TRRA, FAR), margin=0.02)
    assert chosen["candidate"] == "trra_1.5"
    assert chosen["sentence"] == (
        "Use trra_1.5: it saves 28.0 % of the reference's tokens (64.3 instead of 89.3 per completion) at pass@1 "
        "97.5 % against 98.0 %, and with 95 % confidence its pass@1 is at most 1.8 points below the reference's "
        "(allowed: 2.0 points)."
    )
    assert chosen["token_reduction"] == 0.28 and chosen["reference_mean_tokens"] == 89.3
    assert chosen["alpha"] is None and json.loads(json.dumps(chosen, allow_nan=False)) == chosen


@pytest.mark.parametrize(("margin", "candidate"), [(0.018, "trra_1.5"), (0.0179, "aligned"), (0.08, "trra_2.0")])
def test_the_margin_decides(margin: float, candidate: str):
    assert recommend(table(REFERENCE, ALIGNED, TRRA, FAR), margin)["candidate"] == candidate


def test_a_candidate_that_is_surely_not_worse():
    better = ("trra_1.0", "trra", 0.985, 0.001, 70.0, 0.216)
    sentence = recommend(table(REFERENCE, better), margin=0.0)["sentence"]
    assert "with 95 % confidence its pass@1 is not below the reference's (allowed: 0.0 points)" in sentence


def test_none_within_the_margin_keeps_the_reference():
    chosen = recommend(table(REFERENCE, LONGER, TRRA, FAR), margin=0.01)
    assert (chosen["candidate"], chosen["kind"], chosen["token_reduction"]) == ("reference", "reference", 0.0)
    assert chosen["sentence"] == (
        "Keep the reference (reference): no candidate that saves tokens is within 1.0 point of the reference's pass@1 "
        "with 95 % confidence; the closest, trra_1.5, saves 28.0 % of the tokens and may lose 1.8 points."
    )


def test_no_saving_keeps_the_reference():
    chosen = recommend(table(REFERENCE, LONGER), margin=0.02)
    assert chosen["candidate"] == "reference"
    assert chosen["sentence"] == "Keep the reference (reference): no candidate of this sweep saves tokens."


def test_equal_savings_go_to_the_more_correct():
    twin = ("dera_1.5", "dera", 0.979, -0.01, 64.3, 0.28)
    assert recommend(table(REFERENCE, TRRA, twin), margin=0.02)["candidate"] == "dera_1.5"


def test_the_headline_has_the_best_of_either_method_whichever_is_recommended():
    again = ("trra_iter1_1.5", "trra_iter", 0.978, -0.019, 60.0, 0.3)
    inra = ("inra_1.0", "inra", 0.979, -0.01, 30.0, 0.6)
    worse = ("inra_0.5", "inra", 0.9, -0.1, 20.0, 0.8)
    results = table(REFERENCE, ALIGNED, TRRA, FAR, again, inra, worse)
    assert headline(results, recommend(results, margin=0.02)) == {
        "candidate": "inra_1.0",
        "pass_at_1": 0.979,
        "mean_tokens": 30.0,
        "reference_pass_at_1": 0.98,
        "reference_mean_tokens": 89.3,
        "trra_token_reduction": 0.3,
        "inra_token_reduction": 0.6,
    }


def test_the_headline_of_a_sweep_that_saves_nothing():
    results = table(REFERENCE, FAR, LONGER)
    figures = headline(results, recommend(results, margin=0.02))
    assert (figures["candidate"], figures["trra_token_reduction"], figures["inra_token_reduction"]) == (
        "reference",
        0,
        0,
    )
