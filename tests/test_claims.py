"""`make claims` on made-up results: with every claim true, and with each one broken in turn."""

import json
from dataclasses import replace

import claims
import numpy as np
import pandas as pd
import pytest

# candidate: (kind, alpha, mean tokens, difference of pass@1 from the reference's, its lower bound)
SWEEP = {
    "reference": ("reference", np.nan, 60.0, 0.0, 0.0),
    "aligned": ("aligned", np.nan, 48.0, -0.002, -0.01),  # saves 20 %
    "dera-0.5": ("dera", 0.5, 54.2, 0.0, -0.01),
    "dera-1.5": ("dera", 1.5, 41.9, 0.0, -0.01),
    "trra-0.5": ("trra", 0.5, 54.0, 0.0, -0.01),
    "trra-1": ("trra", 1.0, 47.5, 0.0, -0.01),
    "trra-1.5": ("trra", 1.5, 42.0, -0.001, -0.01),  # saves 30 %
    "trra-3": ("trra", 3.0, 30.0, -0.05, -0.06),
    "trra-iter1-1.5": ("trra_iter", 1.5, 36.0, -0.01, -0.03),
    "inra-0": ("inra", 0.0, 60.0, 0.0, 0.0),
    "inra-1": ("inra", 1.0, 15.0, 0.005, -0.005),
}
RECOMMENDATION = {
    "candidate": "inra-1",
    "margin": 0.02,
    "survived": True,
    "token_reduction": 0.74,
    "difference_low": -0.019,
}
# kind, budget, difference from truncation, its lower bound
BUDGETS = [
    ("truncation", 24, 0.0, 0.0),
    ("token_budget", 24, 0.168, 0.149),
    ("truncation", 48, 0.0, 0.0),
    ("token_budget", 48, 0.718, 0.693),
    ("truncation", 96, 0.0, 0.0),
    ("token_budget", 96, -0.001, -0.008),
]


@pytest.fixture
def results() -> claims.Results:
    columns = ["kind", "alpha", "mean_tokens", "difference", "difference_low"]
    sweep = pd.DataFrame.from_dict(SWEEP, orient="index", columns=columns).rename_axis("candidate")
    sweep["plausibility"] = sweep["alpha"].notna() * 0.1
    sweep["token_reduction"] = 1 - sweep["mean_tokens"] / 60
    written = pd.DataFrame(
        {"task": "sums", "problem_id": ["a", "a", "b"], "sample": [0, 1, 0], "completion": ["1", "2", "3"]}
    )
    return claims.Results(
        sweep=sweep,
        budgets=pd.DataFrame(BUDGETS, columns=["kind", "budget", "difference", "difference_low"]),
        reference=written,
        inra_0=written.iloc[::-1],  # the order of rows is not what was written
        recommendation=RECOMMENDATION,
        validations={"samples": {"success": True, "failed": 0}, "evaluation": {"success": True, "failed": 0}},
    )


def failing(results: claims.Results) -> list[str]:
    return [claim.__name__ for claim in claims.CLAIMS if not claims.check(claim, results)[0]]


def test_all_hold(results):
    assert failing(results) == []


def measured(candidate: str, **figures: float):
    """A change of a candidate's row; its reduction follows its tokens."""

    def change(results: claims.Results) -> claims.Results:
        sweep = results.sweep.copy()
        sweep.loc[candidate, list(figures)] = list(figures.values())
        return replace(results, sweep=sweep.assign(token_reduction=1 - sweep["mean_tokens"] / 60))

    return change


def without(*candidates: str):
    return lambda results: replace(results, sweep=results.sweep.drop(list(candidates)))


def written(**columns: list):
    return lambda results: replace(results, inra_0=results.reference.assign(**columns))


def truncated(budget: int, low: float):
    def change(results: claims.Results) -> claims.Results:
        rows = (results.budgets["kind"] == "token_budget") & (results.budgets["budget"] == budget)
        return replace(results, budgets=results.budgets.assign(
            difference_low=results.budgets["difference_low"].mask(rows, low)
        ))  # fmt: skip

    return change


def recommended(**figures):
    return lambda results: replace(results, recommendation=RECOMMENDATION | figures)


def validated(**found):
    return lambda results: replace(results, validations=results.validations | found)


@pytest.mark.parametrize(
    ("change", "claim", "said"),
    [
        (measured("trra-3", mean_tokens=42.0), "more_alpha_fewer_tokens", "60.0, 54.0, 47.5, 42.0, 42.0 tokens at"),
        (measured("trra-1", mean_tokens=45.9), "alpha_1_is_the_aligned_model", "23.5 % and 20.0 %"),
        (measured("trra-1", mean_tokens=50.1), "alpha_1_is_the_aligned_model", "16.5 % and 20.0 %"),
        (measured("dera-1.5", mean_tokens=39.9), "trra_follows_dera", "0.996 at 0.5, 1.053 at 1.5"),
        (without("dera-0.5", "dera-1.5"), "trra_follows_dera", "TrRa / DeRa "),
        (measured("trra-1.5", difference=-0.021), "beyond_alpha_1_saves_more", "no student beyond alpha 1"),
        (measured("trra-iter1-1.5", mean_tokens=42.0), "another_round_saves_more", "42.0 after 42.0"),
        (without("trra-iter1-1.5"), "another_round_saves_more", "not measured: ['trra-iter1-1.5'] not in index"),
        (written(completion=["1", "2", "4"]), "inra_at_0_is_the_reference", "2 of 3 are equal"),
        (written(problem_id=["a", "a", "c"]), "inra_at_0_is_the_reference", "2 of 3 are equal"),
        (measured("inra-1", mean_tokens=30.1), "inra_at_1_is_short", "30.1 and 60.0"),
        (truncated(48, 0.0), "token_budget_beats_truncation", "+16.8 points at 24, +71.8 points at 48"),
        (recommended(difference_low=-0.021), "the_recommended_one_is_within_the_margin", "−2.1 points of −2.0"),
        (recommended(token_reduction=-0.01), "the_recommended_one_is_within_the_margin", "inra-1 saves −1.0 %"),
        (recommended(survived=False), "the_recommended_one_is_within_the_margin", "inra-1 saves 74.0 %"),
        (validated(pairs={"success": False, "failed": 1}), "every_validation_is_met", "pairs"),
    ],
)
def test_a_break_is_found(results, change, claim, said):
    broken = change(results)
    assert failing(broken) == [claim]
    assert said in claims.check(getattr(claims, claim), broken)[1]


def test_beyond_alpha_1_the_ratio_decides(results):
    """1.2 times 20 % are 24 %: 45.6 of 60 tokens. The other claims' tokens follow."""
    for tokens, holds in ((45.5, True), (45.7, False)):
        found, said = claims.beyond_alpha_1_saves_more(measured("trra-1.5", mean_tokens=tokens)(results))
        assert found == holds, said


def write(results: claims.Results, data) -> None:
    generations, reporting = data / "07_model_output" / "generations", data / "08_reporting"
    for folder in (generations, reporting / "validation"):
        folder.mkdir(parents=True)
    results.sweep.to_csv(reporting / "sweep_table.csv")
    results.budgets.to_csv(data / "07_model_output" / "budget_results.csv", index=False)
    results.reference.to_parquet(generations / "reference.parquet")
    results.inra_0.to_parquet(generations / "inra-0.parquet")
    (reporting / "recommendation.json").write_text(json.dumps(results.recommendation))
    for name, found in results.validations.items():
        (reporting / "validation" / f"{name}.json").write_text(json.dumps(found))


def test_one_line_a_claim_and_the_exit_code(results, tmp_path, capsys):
    write(results, tmp_path / "good")
    assert claims.main(tmp_path / "good") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(claims.CLAIMS) and all(line.startswith("pass  ") for line in lines)
    assert "pass  TrRa at alpha 1 saves what the aligned model saves, within 3 points: 20.8 % and 20.0 %" in lines

    write(measured("inra-1", mean_tokens=31.0)(results), tmp_path / "bad")
    assert claims.main(tmp_path / "bad") == 1
    [failed] = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("pass  ")]
    assert failed == "FAIL  InRa at alpha 1 writes at most half of the reference's tokens: 31.0 and 60.0"


def test_without_a_run_it_says_what_to_do(tmp_path, capsys):
    assert claims.main(tmp_path) == 1
    said = capsys.readouterr().out
    assert "sweep_table.csv is missing" in said and "make run" in said and said.count("\n") == 1
