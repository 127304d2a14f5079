"""Checks what README and docs claim about the default run against the results of the last one: `make claims`.

The claims are orderings and ratios, which hold on any machine; digits do not. Prints one line per claim; the exit code
is 1 if one fails.
"""

import json
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from realign_pipes.reporting.tables import percent, tokens_text
from realign_pipes.sweep.bounds import bootstrap_means

PROJECT = Path(__file__).parents[1]
COMPLETION = ["task", "problem_id", "sample", "completion"]
RESAMPLES = 2000


@dataclass(frozen=True)
class Gain:
    """A difference of pass@1 from the reference's, as a share, and the ends of its paired 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """In points."""
        return f"{percent(self.value)} points [{percent(self.low)}, {percent(self.high)}]"


@dataclass(frozen=True)
class Results:
    """The results that the claims are checked on."""

    sweep: pd.DataFrame
    """sweep_table.csv: one row per candidate, indexed by `candidate`."""
    by_task: pd.DataFrame
    """sweep_results.csv: each candidate's figures on each task, indexed by `task` and `candidate`."""
    budgets: pd.DataFrame
    """budget_results.csv."""
    completions: Mapping[str, pd.DataFrame]
    """Graded completions by candidate: columns `correct` and COMPLETION's."""
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

    def tasks(self) -> list[str]:
        """The tasks of the evaluation set."""
        return sorted(set(self.completions["reference"]["task"]))

    def gain(self, candidate: str, *tasks: str) -> "Gain":
        """How much more often a candidate is right than the reference, as the mean over `tasks` (default: all).

        The interval is paired: the resampled problems are the same for both. KeyError if it was not measured.
        """
        gains, resampled = [], []
        for task in tasks or self.tasks():
            correct = [
                frame[frame["task"] == task].groupby("problem_id")["correct"].mean()
                for frame in (self.completions[candidate], self.completions["reference"])
            ]
            difference = (correct[0] - correct[1]).to_numpy(float)  # pandas aligns the problems
            gains.append(difference.mean())
            resampled.append(bootstrap_means(difference[None], RESAMPLES, zlib.crc32(task.encode()))[0])
        low, high = np.quantile(np.mean(resampled, axis=0), [0.025, 0.975])
        return Gain(float(np.mean(gains)), float(low), float(high))


def read_results(data: Path) -> Results:
    """The results of a run in a data folder. FileNotFoundError if one is missing."""
    generations, reporting = data / "07_model_output" / "generations", data / "08_reporting"
    return Results(
        sweep=pd.read_csv(reporting / "sweep_table.csv").set_index("candidate"),
        by_task=pd.read_csv(data / "07_model_output" / "sweep_results.csv").set_index(["task", "candidate"]),
        budgets=pd.read_csv(data / "07_model_output" / "budget_results.csv"),
        completions={file.stem: pd.read_parquet(file) for file in sorted(generations.glob("*.parquet"))},
        recommendation=json.loads((reporting / "recommendation.json").read_text()),
        validations={file.stem: json.loads(file.read_text()) for file in sorted((reporting / "validation").iterdir())},
    )


Checked = tuple[bool, str]
"""Whether a claim holds, and its figures. The claim's docstring is what gets printed."""


def more_alpha_fewer_tokens(results: Results) -> Checked:
    """TrRa: the larger alpha, the fewer tokens"""
    students = results.of_kind("trra")
    measured = dict(zip(students["alpha"], students["mean_tokens"], strict=True))
    measured[0.0] = results.sweep.loc["reference", "mean_tokens"]
    alphas = sorted(measured)
    tokens = [measured[alpha] for alpha in alphas]
    falls = all(after < before for before, after in pairwise(tokens))
    found = f"{', '.join(map(tokens_text, tokens))} tokens at alpha {', '.join(f'{alpha:g}' for alpha in alphas)}"
    return len(students) > 1 and falls, found


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


def the_reference_slips(results: Results) -> Checked:
    """The reference is right in 85 to 97 % of its answers"""
    right = results.sweep.loc["reference", "pass_at_1"]
    return 0.85 <= right <= 0.97, f"{percent(right)} %"


def one_task_needs_thinking(results: Results) -> Checked:
    """Without thinking (InRa at alpha 1) one task loses at least 5 points, and another one less"""
    gains = {task: results.gain("inra-1", task) for task in results.tasks()}
    needs, hardly = min(gains.values(), key=lambda gain: gain.value), max(gains.values(), key=lambda gain: gain.value)
    return needs.high <= -0.05 and hardly.low > needs.high, ", ".join(f"{task}: {gain}" for task, gain in gains.items())


def thinking_has_no_ceiling(results: Results) -> Checked:
    """On the task that needs thinking no candidate is right in more than 98 % of its answers"""
    task = min(results.tasks(), key=lambda task: results.gain("inra-1", task).value)
    best = results.by_task.loc[task]["pass_at_1"]
    return best.max() <= 0.98, f"{task}: at most {percent(best.max())} % ({best.idxmax()})"


def beyond_alpha_1_saves_more(results: Results) -> Checked:
    """TrRa beyond alpha 1 saves half of the tokens, 1.6 times what the aligned model saves, losing at most a point"""
    students = results.of_kind("trra")
    gains = {name: results.gain(name) for name in students.index[students["alpha"] > 1]}
    qualified = students.loc[[name for name, gain in gains.items() if gain.low >= -0.01]]
    if qualified.empty:
        return False, "no student beyond alpha 1 loses less than a point"
    best = qualified.loc[qualified["token_reduction"].idxmax()]
    saved, ratio = best["token_reduction"], best["token_reduction"] / results.sweep.loc["aligned", "token_reduction"]
    figures = f"{percent(saved)} %, {ratio:.2f} times, at alpha {best['alpha']:g}, pass@1 {gains[best.name]}"
    return saved >= 0.5 and ratio >= 1.6, figures


def nothing_collapses(results: Results) -> Checked:
    """TrRa and DeRa do not collapse: at no alpha measured, DeRa's up to 10, do they lose 5 points"""
    rows = pd.concat([results.of_kind("trra"), results.of_kind("dera")])
    gains = {name: results.gain(name) for name in rows.index[rows["alpha"] > 1]}
    if not gains or rows["alpha"].max() < 10:
        return False, "alpha 10 was not measured"
    worst = min(gains, key=lambda name: gains[name].value)
    return gains[worst].low >= -0.05, f"the worst is {worst}, {gains[worst]}"


def another_round_saves_more(results: Results) -> Checked:
    """TrRa-iter writes fewer tokens than the round before it"""
    first, second = results.sweep.loc[["trra-1.5", "trra-iter1-1.5"], "mean_tokens"]
    return second < first, f"{tokens_text(second)} after {tokens_text(first)}"


def inra_at_0_is_the_reference(results: Results) -> Checked:
    """InRa at alpha 0 writes what the reference writes, completion by completion"""
    ours, theirs = (frame[COMPLETION].sort_values(COMPLETION[:3]).to_numpy().tolist()
                    for frame in (results.completions["inra-0"], results.completions["reference"]))  # fmt: skip
    same = sum(one == other for one, other in zip(ours, theirs, strict=False))
    return ours == theirs, f"{same:,} of {len(theirs):,} are equal"


def inra_at_1_is_short(results: Results) -> Checked:
    """InRa at alpha 1 writes at most half of the reference's tokens"""
    inra, reference = results.sweep.loc[["inra-1", "reference"], "mean_tokens"]
    return inra <= reference / 2, f"{tokens_text(inra)} and {tokens_text(reference)}"


def between_its_ends_inra_is_no_worse(results: Results) -> Checked:
    """InRa between alpha 0 and 1 loses at most 2 points on any task against the worse of the two ends"""
    between = results.of_kind("inra")
    between = between[(between["alpha"] > 0) & (between["alpha"] < 1)]
    right = results.by_task["pass_at_1"]
    above = {
        (name, task): right[task, name] - min(right[task, "inra-0"], right[task, "inra-1"])
        for name in between.index
        for task in results.tasks()
    }
    if not above:
        return False, "not measured"
    name, task = min(above, key=lambda key: above[key])
    return above[name, task] >= -0.02, f"at worst {percent(above[name, task])} points: {name} on {task}"


def more_thinking_than_the_original(results: Results) -> Checked:
    """Below alpha 0, InRa, and TrRa or DeRa, think 10 % longer than the reference and are right more often"""
    longest = 1.1 * results.sweep.loc["reference", "mean_tokens"]
    found: dict[tuple[str, ...], tuple[str, Gain]] = {}
    for kinds in (("inra",), ("trra", "dera")):
        rows = pd.concat([results.of_kind(kind) for kind in kinds])
        for name in rows.index[(rows["alpha"] < 0) & (rows["mean_tokens"] >= longest)]:
            gain = results.gain(name)
            if kinds not in found or gain.low > found[kinds][1].low:
                found[kinds] = (name, gain)
    figures = ", ".join(
        f"{name} {tokens_text(results.sweep.loc[name, 'mean_tokens'])} tokens, {gain}" for name, gain in found.values()
    )
    return len(found) == 2 and all(gain.low > 0 for _, gain in found.values()), figures or "none thinks longer"


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
    the_reference_slips,
    one_task_needs_thinking,
    thinking_has_no_ceiling,
    beyond_alpha_1_saves_more,
    nothing_collapses,
    another_round_saves_more,
    inra_at_0_is_the_reference,
    inra_at_1_is_short,
    between_its_ends_inra_is_no_worse,
    more_thinking_than_the_original,
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
