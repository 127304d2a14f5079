"""Checks what README and docs claim about the default run against the results of the last one: `make claims`.

The claims are orderings and ratios, which hold on any machine; digits do not. Prints one line per claim; the exit code
is 1 if one fails.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from realign_pipes.reporting.tables import percent, tokens_text

PROJECT = Path(__file__).parents[1]
COMPLETION = ["task", "problem_id", "sample", "completion"]


@dataclass(frozen=True)
class Results:
    """The results that the claims are checked on."""

    sweep: pd.DataFrame
    """sweep_table.csv: one row per candidate, indexed by `candidate`."""
    budgets: pd.DataFrame
    """budget_results.csv."""
    reference: pd.DataFrame
    """The reference's completions."""
    inra_0: pd.DataFrame
    """InRa's at alpha 0."""
    recommendation: dict[str, Any]
    validations: dict[str, dict[str, Any]]
    """What Great Expectations found, by data set."""

    @property
    def margin(self) -> float:
        """The pass@1 that the recommended candidate may lose."""
        return float(self.recommendation["margin"])

    def of_kind(self, kind: str) -> pd.DataFrame:
        """Candidates of one kind in order of alpha, without those that leave the mask out."""
        rows = self.sweep[self.sweep["kind"] == kind]
        return rows[rows["plausibility"] == rows["plausibility"].max()].sort_values("alpha")


def read_results(data: Path) -> Results:
    """The results of a run in a data folder. FileNotFoundError if one is missing."""
    generations, reporting = data / "07_model_output" / "generations", data / "08_reporting"
    return Results(
        sweep=pd.read_csv(reporting / "sweep_table.csv").set_index("candidate"),
        budgets=pd.read_csv(data / "07_model_output" / "budget_results.csv"),
        reference=pd.read_parquet(generations / "reference.parquet"),
        inra_0=pd.read_parquet(generations / "inra-0.parquet"),
        recommendation=json.loads((reporting / "recommendation.json").read_text()),
        validations={file.stem: json.loads(file.read_text()) for file in sorted((reporting / "validation").iterdir())},
    )


Checked = tuple[bool, str]
"""Whether a claim holds, and its figures. The claim's docstring is what gets printed."""


def more_alpha_fewer_tokens(results: Results) -> Checked:
    """TrRa: the larger alpha, the fewer tokens"""
    students = results.of_kind("trra")
    tokens = [results.sweep.loc["reference", "mean_tokens"], *students["mean_tokens"]]
    falls = all(after < before for before, after in pairwise(tokens))
    alphas = ", ".join(f"{alpha:g}" for alpha in [0, *students["alpha"]])
    return len(students) > 1 and falls, f"{', '.join(map(tokens_text, tokens))} tokens at alpha {alphas}"


def alpha_1_is_the_aligned_model(results: Results) -> Checked:
    """TrRa at alpha 1 saves what the aligned model saves, within 3 points"""
    student, aligned = results.sweep.loc[["trra-1", "aligned"], "token_reduction"]
    return abs(student - aligned) <= 0.03, f"{percent(student)} % and {percent(aligned)} %"


def trra_follows_dera(results: Results) -> Checked:
    """TrRa writes as many tokens as DeRa at the same alpha, within 5 %"""
    pairs = results.of_kind("trra").merge(results.of_kind("dera"), on="alpha", suffixes=("", "_dera"))
    ratios = pairs["mean_tokens"] / pairs["mean_tokens_dera"]
    found = ", ".join(f"{ratio:.3f} at {alpha:g}" for ratio, alpha in zip(ratios, pairs["alpha"], strict=True))
    return len(pairs) > 0 and bool(ratios.between(0.95, 1.05).all()), f"TrRa / DeRa {found}"


def beyond_alpha_1_saves_more(results: Results) -> Checked:
    """TrRa beyond alpha 1 saves at least 1.2 times what the aligned model saves, with pass@1 within the margin"""
    students = results.of_kind("trra")
    qualified = students[(students["alpha"] > 1) & (students["difference"] >= -results.margin)]
    if qualified.empty:
        return False, f"no student beyond alpha 1 is within {percent(results.margin)} points"
    best = qualified.loc[qualified["token_reduction"].idxmax()]
    ratio = best["token_reduction"] / results.sweep.loc["aligned", "token_reduction"]
    return ratio >= 1.2, f"{ratio:.2f} times at alpha {best['alpha']:g}, pass@1 {percent(best['difference'])} points"


def another_round_saves_more(results: Results) -> Checked:
    """TrRa-iter writes fewer tokens than the round before it"""
    first, second = results.sweep.loc[["trra-1.5", "trra-iter1-1.5"], "mean_tokens"]
    return second < first, f"{tokens_text(second)} after {tokens_text(first)}"


def inra_at_0_is_the_reference(results: Results) -> Checked:
    """InRa at alpha 0 writes what the reference writes, completion by completion"""
    ours, theirs = (frame[COMPLETION].sort_values(COMPLETION[:3]).to_numpy().tolist()
                    for frame in (results.inra_0, results.reference))  # fmt: skip
    same = sum(one == other for one, other in zip(ours, theirs, strict=False))
    return ours == theirs, f"{same:,} of {len(theirs):,} are equal"


def inra_at_1_is_short(results: Results) -> Checked:
    """InRa at alpha 1 writes at most half of the reference's tokens"""
    inra, reference = results.sweep.loc[["inra-1", "reference"], "mean_tokens"]
    return inra <= reference / 2, f"{tokens_text(inra)} and {tokens_text(reference)}"


def token_budget_beats_truncation(results: Results) -> Checked:
    """TokenBudget beats plain truncation at every budget below the reference's mean tokens, with 95 % confidence"""
    ours = results.budgets[results.budgets["kind"] == "token_budget"]
    short = ours[ours["budget"] < results.sweep.loc["reference", "mean_tokens"]]
    gains = ", ".join(f"+{percent(row.difference)} points at {row.budget}" for row in short.itertuples())
    return len(short) > 0 and bool((short["difference_low"] > 0).all()), gains.replace("+−", "−") or "no such budget"


def the_recommended_one_is_within_the_margin(results: Results) -> Checked:
    """The recommended candidate saves tokens within the margin, confirmed on problems that had no part in its choice"""
    found = results.recommendation
    figures = (
        f"{found['candidate']} saves {percent(found['token_reduction'])} %, lower bound "
        f"{percent(found['difference_low'])} points of {percent(-results.margin)}"
    )
    within = found["token_reduction"] > 0 and found["difference_low"] >= -results.margin
    return bool(found["survived"] and within), figures


def every_validation_is_met(results: Results) -> Checked:
    """Every data set met its expectations"""
    failed = [name for name, found in results.validations.items() if not found["success"] or found["failed"]]
    return not failed and len(results.validations) > 0, ", ".join(failed) or f"{len(results.validations)} data sets"


CLAIMS: tuple[Callable[[Results], Checked], ...] = (
    more_alpha_fewer_tokens,
    alpha_1_is_the_aligned_model,
    trra_follows_dera,
    beyond_alpha_1_saves_more,
    another_round_saves_more,
    inra_at_0_is_the_reference,
    inra_at_1_is_short,
    token_budget_beats_truncation,
    the_recommended_one_is_within_the_margin,
    every_validation_is_met,
)


def check(claim: Callable[[Results], Checked], results: Results) -> Checked:
    """Whether a claim holds; it fails if the candidates that it needs were not measured."""
    try:
        return claim(results)
    except KeyError as error:
        return False, f"not measured: {error.args[0]}"


def main(data: Path) -> int:
    """Print a line for each claim; returns 1 if one fails or there is no run, else 0."""
    try:
        results = read_results(data)
    except FileNotFoundError as error:
        print(f"There is no finished default run in {data}: {error.filename} is missing. Make one: make run")
        return 1
    checked = [(claim.__doc__, *check(claim, results)) for claim in CLAIMS]
    for said, holds, figures in checked:
        print(f"{'pass' if holds else 'FAIL'}  {said}: {figures}")
    return 0 if all(holds for _, holds, _ in checked) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else PROJECT / "data"))
