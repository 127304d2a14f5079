"""`make claims` on made-up results: with every claim true, and with each one broken in turn."""

import json
import re
from dataclasses import replace

import claims
import numpy as np
import pandas as pd
import pytest

# candidate: (kind, alpha, mean tokens, pass@1 on the short sums, on the long ones)
SWEEP = {
    "reference": ("reference", np.nan, 60.0, 0.95, 0.85),
    "aligned": ("aligned", np.nan, 42.0, 0.96, 0.87),  # saves 30 %
    "dera--0.5": ("dera", -0.5, 70.0, 0.97, 0.88),
    "dera-0.5": ("dera", 0.5, 51.2, 0.95, 0.86),
    "dera-1.5": ("dera", 1.5, 31.9, 0.98, 0.93),
    "dera-10": ("dera", 10.0, 25.0, 0.97, 0.95),
    "trra-0.5": ("trra", 0.5, 51.0, 0.95, 0.86),
    "trra-1": ("trra", 1.0, 41.5, 0.96, 0.87),
    "trra-1.5": ("trra", 1.5, 32.0, 0.97, 0.93),
    "trra-3": ("trra", 3.0, 28.0, 0.97, 0.95),  # saves 53 %, 1.78 times as much
    "trra-3-unmasked": ("trra", 3.0, 61.0, 0.4, 0.1),
    "trra-iter1-1.5": ("trra_iter", 1.5, 27.0, 0.97, 0.95),
    "inra--0.5": ("inra", -0.5, 72.0, 0.98, 0.91),
    "inra-0": ("inra", 0.0, 60.0, 0.95, 0.85),
    "inra-0.5": ("inra", 0.5, 30.0, 0.94, 0.7),
    "inra-1": ("inra", 1.0, 15.0, 0.93, 0.6),
}
TASKS = {"long": 4, "short": 3}
"""The place of each task's pass@1 in a row."""
PROBLEMS = 100
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


def completions(*right: float) -> pd.DataFrame:
    """Of 100 problems of the long and of the short sums, the first are right."""
    rows = [
        {"task": task, "problem_id": f"{task}-{problem:03d}", "sample": 0, "completion": "1"}
        | {"correct": problem < round(share * PROBLEMS)}
        for task, share in zip(TASKS, right, strict=True)
        for problem in range(PROBLEMS)
    ]
    return pd.DataFrame(rows)


def results_of(rows: dict[str, tuple]) -> claims.Results:
    sweep = pd.DataFrame.from_dict(rows, orient="index", columns=["kind", "alpha", "mean_tokens", "short", "long"])
    sweep = sweep.rename_axis("candidate")
    sweep["plausibility"] = sweep["alpha"].notna() * 0.1
    sweep.loc[sweep.index.str.endswith("-unmasked"), "plausibility"] = 0.0
    sweep["pass_at_1"] = (sweep["short"] + sweep["long"]) / 2
    sweep["token_reduction"] = 1 - sweep["mean_tokens"] / 60
    sweep["difference_low"] = sweep["pass_at_1"] - sweep.loc["reference", "pass_at_1"] - 0.005
    by_task = pd.concat({task: sweep[[task]].set_axis(["pass_at_1"], axis=1) for task in TASKS}, names=["task"])
    written = {name: completions(row[TASKS["long"]], row[TASKS["short"]]) for name, row in rows.items()}
    return claims.Results(
        sweep=sweep,
        by_task=by_task,
        budgets=pd.DataFrame(BUDGETS, columns=["kind", "budget", "difference", "difference_low"]),
        completions=written | {"inra-0": written["inra-0"].iloc[::-1]},  # the order of rows is not what was written
        recommendation=RECOMMENDATION,
        validations={"samples": {"success": True, "failed": 0}, "evaluation": {"success": True, "failed": 0}},
    )


@pytest.fixture
def results() -> claims.Results:
    return results_of(SWEEP)


def failing(results: claims.Results) -> list[str]:
    return [claim.__name__ for claim in claims.CLAIMS if not claims.check(claim, results)[0]]


def test_all_hold(results):
    assert failing(results) == []


COLUMNS = ("kind", "alpha", "tokens", "short", "long")


def measured(**candidates: dict[str, float]):
    """A change of candidates' rows; what follows from them changes too. Names as keywords: `trra_3` is trra-3."""

    def change(results: claims.Results) -> claims.Results:
        rows, named = dict(SWEEP), {re.sub(r"[-.]", "_", row): row for row in SWEEP}
        for name, figures in candidates.items():
            row = named[name]
            rows[row] = tuple(figures.get(column, old) for column, old in zip(COLUMNS, rows[row], strict=True))
        return results_of(rows)

    return change


def level(by: float):
    """Every candidate is right more often by so much."""
    return lambda results: results_of({name: (*row[:3], row[3] + by, row[4] + by) for name, row in SWEEP.items()})


def without(*candidates: str):
    return lambda results: results_of({name: row for name, row in SWEEP.items() if name not in candidates})


def written(**columns: list):
    """What InRa wrote at alpha 0, different in the first rows."""

    def change(results: claims.Results) -> claims.Results:
        frame = results.completions["reference"]
        changed = {name: [*values, *frame[name][len(values) :]] for name, values in columns.items()}
        return replace(results, completions=results.completions | {"inra-0": frame.assign(**changed)})

    return change


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
        (
            measured(trra_1_5={"tokens": 28.0}, dera_1_5={"tokens": 28.0}),
            "more_alpha_fewer_tokens",
            "41.5, 28.0, 28.0 tokens at",
        ),
        (measured(trra_1={"tokens": 40.1}), "alpha_1_is_the_aligned_model", "33.2 % and 30.0 %"),
        (measured(trra_1={"tokens": 43.9}), "alpha_1_is_the_aligned_model", "26.8 % and 30.0 %"),
        (measured(dera_1_5={"tokens": 30.3}), "trra_follows_dera", "0.996 at 0.5, 1.056 at 1.5"),
        (without("dera-0.5", "dera-1.5"), "trra_follows_dera", "TrRa / DeRa "),
        (level(-0.06), "the_reference_slips", "84.0 %"),
        (measured(inra_1={"long": 0.81}, inra_0_5={"long": 0.81}), "one_task_needs_thinking", "long: −4.0 points"),
        (measured(dera_10={"long": 0.99}), "thinking_has_no_ceiling", "long: at most 99.0 % (dera-10)"),
        (measured(trra_3={"tokens": 30.1}), "beyond_alpha_1_saves_more", "49.8 %, 1.66 times, at alpha 3"),
        (measured(dera_10={"long": 0.74}), "nothing_collapses", "the worst is dera-10, −4.5 points"),
        (without("dera-10"), "nothing_collapses", "alpha 10 was not measured"),
        (measured(trra_iter1_1_5={"tokens": 32.0}), "another_round_saves_more", "32.0 after 32.0"),
        (without("trra-iter1-1.5"), "another_round_saves_more", "not measured: ['trra-iter1-1.5'] not in index"),
        (written(completion=["1", "2"]), "inra_at_0_is_the_reference", "199 of 200 are equal"),
        (written(problem_id=["a"]), "inra_at_0_is_the_reference", "199 of 200 are equal"),
        (measured(inra_1={"tokens": 30.1}), "inra_at_1_is_short", "30.1 and 60.0"),
        (
            measured(inra_0_5={"long": 0.57}),
            "between_its_ends_inra_is_no_worse",
            "at worst −3.0 points: inra-0.5 on long",
        ),
        (measured(inra__0_5={"tokens": 65.9}), "more_thinking_than_the_original", "dera--0.5 70.0 tokens, 2.5 points"),
        (measured(inra__0_5={"short": 0.95, "long": 0.85}), "more_thinking_than_the_original", "0.0 points [0.0, 0.0]"),
        (without("dera--0.5"), "more_thinking_than_the_original", "inra--0.5 72.0 tokens"),
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


def test_beyond_alpha_1_the_ratio_and_the_loss_decide(results):
    """1.6 times 33 % are more than half: 28.2 of 60 tokens."""
    for tokens, long, holds in ((28.1, 0.95, True), (28.3, 0.95, False), (28.1, 0.80, False)):
        change = measured(aligned={"tokens": 40.1}, trra_3={"tokens": tokens, "long": long})
        found, said = claims.beyond_alpha_1_saves_more(change(results))
        assert found == holds, said


def test_a_gain_is_paired_and_averages_over_tasks(results):
    """Of 100 problems of each task, 88 and 85 of the long ones and 97 and 95 of the short ones are right."""
    gain = results.gain("dera--0.5")
    assert gain.value == pytest.approx((0.03 + 0.02) / 2)
    assert 0 < gain.low < gain.value < gain.high
    # Unpaired, the interval would be twice as wide: binomial, 3 of 100 and 2 of 100 problems differ.
    deviation = np.sqrt(0.03 * 0.97 / PROBLEMS + 0.02 * 0.98 / PROBLEMS) / 2
    assert gain.high - gain.low == pytest.approx(2 * 1.96 * deviation, rel=0.2)
    assert results.gain("dera--0.5", "long").value == pytest.approx(0.03)
    assert results.gain("reference") == claims.Gain(0.0, 0.0, 0.0)


def write(results: claims.Results, data) -> None:
    generations, reporting = data / "07_model_output" / "generations", data / "08_reporting"
    for folder in (generations, reporting / "validation"):
        folder.mkdir(parents=True)
    results.sweep.to_csv(reporting / "sweep_table.csv")
    results.budgets.to_csv(data / "07_model_output" / "budget_results.csv", index=False)
    results.by_task.reset_index().to_csv(data / "07_model_output" / "sweep_results.csv", index=False)
    for name, frame in results.completions.items():
        frame.to_parquet(generations / f"{name}.parquet")
    (reporting / "recommendation.json").write_text(json.dumps(results.recommendation))
    for name, found in results.validations.items():
        (reporting / "validation" / f"{name}.json").write_text(json.dumps(found))


def test_one_line_a_claim_and_the_exit_code(results, tmp_path, capsys):
    write(results, tmp_path / "good")
    assert claims.main(tmp_path / "good") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(claims.CLAIMS) and all(line.startswith("pass  ") for line in lines)
    assert "pass  TrRa at alpha 1 saves what the aligned model saves, within 3 points: 30.8 % and 30.0 %" in lines

    write(measured(inra_1={"tokens": 31.0})(results), tmp_path / "bad")
    assert claims.main(tmp_path / "bad") == 1
    [failed] = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("pass  ")]
    assert failed == "FAIL  InRa at alpha 1 writes at most half of the reference's tokens: 31.0 and 60.0"


def test_without_a_run_it_says_what_to_do(tmp_path, capsys):
    assert claims.main(tmp_path) == 1
    said = capsys.readouterr().out
    assert "sweep_table.csv is missing" in said and "make run" in said and said.count("\n") == 1
