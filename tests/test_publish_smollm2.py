"""The page of `make smollm2`: its tables, from made-up completions whose figures are known."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import publish_smollm2
import pytest
import scipy.stats
from claims import Results

PROJECT = Path(__file__).parents[1]
PROBLEMS = 100
# candidate: (kind, alpha, plausibility, tokens of every completion, share of the problems that are right)
SWEEP = {
    "reference": ("reference", np.nan, 0.0, 100, 0.8),
    "aligned": ("aligned", np.nan, 0.0, 80, 0.8),
    "merge-2": ("merge", 2.0, 0.0, 70, 0.8),
    "merge-5": ("merge", 5.0, 0.0, 60, 0.1),
    "trra-0.5": ("trra", 0.5, 0.1, 90, 0.8),
    "trra-1": ("trra", 1.0, 0.1, 81, 0.8),
    "trra-2": ("trra", 2.0, 0.1, 60, 0.8),
    "trra-5": ("trra", 5.0, 0.1, 50, 0.7),
    "trra-5-unmasked": ("trra", 5.0, 0.0, 50, 0.2),
    "inra--0.5": ("inra", -0.5, 0.1, 120, 0.8),
    "inra-0": ("inra", 0.0, 0.1, 100, 0.8),
    "inra-1": ("inra", 1.0, 0.1, 30, 0.5),
}


def completions(tokens, right, kind):
    """Two samples of each problem; the first share of the problems is right."""
    rows = [
        {
            "task": "word_problems",
            "problem_id": f"p{problem:03d}",
            "sample": sample,
            "completion": f"2+2=4. Wait: 2+2=4. Yes, 4. Hmm: 2+2=4. No, it is 4.</think>\n{kind}",
            "completion_tokens": tokens,
            "finished": True,
            "correct": problem < right * PROBLEMS,
        }
        for problem in range(PROBLEMS)
        for sample in range(2)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def results():
    sweep = pd.DataFrame(
        [
            {
                "candidate": name,
                "kind": kind,
                "alpha": alpha,
                "plausibility": beta,
                "mean_tokens": tokens,
                "pass_at_1": right,
                "pass_at_1_low": right - 0.05,
                "pass_at_1_high": right + 0.05,
                "truncated": 0.0,
            }
            for name, (kind, alpha, beta, tokens, right) in SWEEP.items()
        ]
    )
    budgets = pd.DataFrame(
        [
            {
                "kind": "token_budget",
                "budget": budget,
                **dict.fromkeys(("difference", "difference_low", "difference_high"), 0.5),
                "forced_difference": gain,
                "forced_difference_low": gain - 0.02,
                "forced_difference_high": gain + 0.02,
            }
            for budget, gain in ((48, 0.1), (80, 0.01))
        ]
    )
    frames = {
        name: completions(tokens, right, "reference" if name == "inra-0" else name)
        for name, (_, _, _, tokens, right) in SWEEP.items()
    }
    return Results(sweep.set_index("candidate"), pd.DataFrame(), budgets, frames, {"sentence": "Use it."}, {})


def test_figures_of_constant_tokens_are_exact(results):
    assert str(publish_smollm2.saved(results, "aligned")) == "20.0 [20.0, 20.0]"
    assert str(publish_smollm2.saved_beyond(results, "trra-5", "aligned")) == "30.0 [30.0, 30.0]"
    assert publish_smollm2.checks(results, "reference") == (2.0, 0.0)


def test_the_interval_of_a_difference_is_the_paired_one(results):
    """10 of 100 problems differ, each by 1: the resampled count is binomial. Unpaired it would be twice as wide."""
    gain = publish_smollm2.more_right(results, "trra-2", "trra-5")
    assert gain.value == pytest.approx(0.1)
    below, above = scipy.stats.binom(100, 0.1).cdf([round(100 * gain.low) - 1, round(100 * gain.high)])
    at_low, before_high = scipy.stats.binom(100, 0.1).cdf([round(100 * gain.low), round(100 * gain.high) - 1])
    assert below <= 0.03 and at_low >= 0.02 and before_high <= 0.98 and above >= 0.97


def test_each_claim_is_decided_by_its_interval(results):
    table = publish_smollm2.claims_table(results)
    held = {cells[1]: cells[2] for cells in (re.split(r" ?\| ?", line) for line in table.splitlines()[2:])}
    assert held == {
        "The larger TrRa's alpha, the fewer tokens": "yes",
        "trra-2 saves more than the aligned model": "yes",
        "trra-5 saves more than the aligned model": "yes",
        "TrRa at alpha 1 saves what the aligned model saves, within 5 points": "yes",
        "trra-5 is right more often than without the mask": "yes",
        "trra-2 is right more often than merge-2, which needs no training": "open",
        "trra-5 is right more often than merge-5, which needs no training": "yes",
        "InRa at alpha 0 writes what the reference writes, token for token": "yes",
        "InRa at alpha 1 writes less than half": "yes",
        "inra--0.5 thinks longer than the reference": "yes",
        "inra--0.5 is right more often than the reference": "open",
        "TokenBudget is right more often than forced closing at 48": "yes",
        "TokenBudget is right more often than forced closing at 80": "open",
    }
    worse = {**results.completions, "trra-5": completions(110, 0.1, "trra-5")}
    broken = publish_smollm2.claims_table(
        Results(results.sweep, results.by_task, results.budgets, worse, results.recommendation, {})
    )
    for claim in ("The larger", "trra-5 saves more", "trra-5 is right more often than without"):
        assert re.search(rf"\| {claim}[^|]*\| \*\*no\*\* \|", broken)


def test_rows_of_the_tables(results):
    sweep = publish_smollm2.sweep_table(results).splitlines()
    assert len(sweep) == 2 + len(SWEEP)
    aligned = next(line for line in sweep if line.startswith("| aligned"))
    assert aligned == (
        "| aligned | – | 0 | 80.0 [75.0, 85.0] | 0.0 [0.0, 0.0] | 80.0 | 20.0 [20.0, 20.0] | 2.00 | 0 % | 0.0 % |"
    )
    assert [line.split(" | ")[0] for line in publish_smollm2.short_table(results).splitlines()[2:]] == [
        f"| {name}"
        for name in ("reference", "aligned", "trra-2", "trra-5", "trra-5-unmasked", "merge-5", "inra--0.5", "inra-1")
    ]
    shown = publish_smollm2.examples(results)
    assert shown.count("```\n") == 8 and shown.startswith("reference, 100 tokens:\n\n```\n2+2=4.")


def test_the_floor_is_the_completions_without_a_re_check(results):
    results.completions["aligned"].loc[:2, ["completion", "completion_tokens"]] = ["2+2=4.</think>", 40]
    results.completions["aligned"].loc[2, ["completion_tokens", "finished"]] = [260, False]
    said = publish_smollm2.room(results)
    assert said == (
        "The reference writes 100.0 tokens, the aligned model 80.0, and the 2 completions of both without any re-check "
        "have 40.0.\n"
    )


def test_every_marker_names_a_table_and_is_closed(results):
    for file in (PROJECT / "README.md", PROJECT / "docs" / "smollm2.md"):
        text = file.read_text()
        found = publish_smollm2.MARKED.findall(text)
        assert {name for _, name, _ in found} <= set(publish_smollm2.TABLES)
        assert text.count("<!-- smollm2:") == text.count("<!-- /smollm2 -->") == len(found)
    page = "a\n<!-- smollm2:recommendation -->\nold\n<!-- /smollm2 -->\nb\n"
    assert publish_smollm2.fill(page, results) == page.replace("old", "> Use it.")


def test_without_a_run_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(publish_smollm2, "DATA", tmp_path)
    assert publish_smollm2.main() == 1
    assert "make smollm2" in capsys.readouterr().out
