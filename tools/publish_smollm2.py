"""Fills the tables of docs/smollm2.md and README from the last run of `make smollm2`, which ends with this.

A table goes between `<!-- smollm2:NAME -->` and `<!-- /smollm2 -->`, where NAME is a key of `TABLES`. Whether a claim
holds is decided by 95 % intervals of a paired bootstrap over the problems: yes or no if the interval leaves 0 out, else
it is open.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from claims import COMPLETION, PROJECT, Results, read_results
from marked import fill_marked, marker

from realign_pipes.reporting.tables import (
    Cells,
    alpha_text,
    duration,
    interval_text,
    markdown_table,
    percent,
    percent_interval,
    tokens_text,
)
from realign_pipes.runtime.training import training_seconds
from realign_pipes.sweep.metrics import bootstrap_means

DATA = PROJECT / "data" / "smollm2"
MARKED = marker("smollm2")
RESAMPLES = 10_000
SEED = 60
CHECK = re.compile(r"(?:Yes|No), ")
"""How a re-check of a trace ends."""


@dataclass(frozen=True)
class Estimate:
    """A share and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """In percent, or in points for a difference."""
        return percent_interval(self.value, self.low, self.high)

    @property
    def positive(self) -> str:
        """Whether it is above 0: yes, no, or open."""
        return "yes" if self.low > 0 else "**no**" if self.high < 0 else "open"


def by_problem(results: Results, column: str, *candidates: str) -> np.ndarray:
    """Means over samples, [candidates, problems]. KeyError for a candidate that was not measured."""
    frames = [results.completions[name].groupby("problem_id")[column].mean() for name in candidates]
    return np.stack([frame.reindex(frames[0].index).to_numpy(float) for frame in frames])


def estimate(values: np.ndarray, figure: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """`figure` of the candidates' means, [candidates, …] -> […], and its interval over resampled problems."""
    low, high = np.quantile(figure(bootstrap_means(values, RESAMPLES, SEED)), [0.025, 0.975])
    return Estimate(float(figure(values.mean(1))), float(low), float(high))


def saved(results: Results, candidate: str) -> Estimate:
    """The share of the reference's tokens that a candidate saves."""
    return estimate(
        by_problem(results, "completion_tokens", "reference", candidate), lambda mean: 1 - mean[1] / mean[0]
    )


def saved_beyond(results: Results, candidate: str, other: str) -> Estimate:
    """By how much the savings of `candidate` are larger than those of `other`."""
    tokens = by_problem(results, "completion_tokens", "reference", candidate, other)
    return estimate(tokens, lambda mean: (mean[2] - mean[1]) / mean[0])


def more_right(results: Results, candidate: str, other: str = "reference") -> Estimate:
    """By how much `candidate` is right more often than `other`."""
    return estimate(by_problem(results, "correct", candidate, other), lambda mean: mean[0] - mean[1])


def checks(results: Results, candidate: str) -> tuple[float, float]:
    """Re-checks in a completion, in the mean; and the share of the completions without any."""
    counts = results.completions[candidate]["completion"].map(lambda text: len(CHECK.findall(text)))
    return float(counts.mean()), float((counts == 0).mean())


def sweep_table(results: Results) -> str:
    """All candidates, with their re-checks."""
    rows = []
    for row in results.sweep.reset_index().itertuples():
        often, never = checks(results, row.candidate)
        rows.append(
            [
                row.candidate,
                alpha_text(row.alpha),
                f"{row.plausibility:g}",
                interval_text(row),
                "–" if row.candidate == "reference" else str(more_right(results, row.candidate)),
                tokens_text(row.mean_tokens),
                "–" if row.candidate == "reference" else str(saved(results, row.candidate)),
                f"{often:.2f}",
                f"{percent(never, 0)} %",
                f"{percent(row.truncated)} %",
            ]
        )
    header = ["candidate", "alpha", "beta", "pass@1 % [95 %]", "to the reference, points", "tokens", "saved, % [95 %]"]
    return markdown_table(Cells([*header, "re-checks", "without any", "cut off"], rows, left=1), None)


def room(results: Results) -> str:
    """How long the two models' completions are, and those without any re-check: what extrapolation can still save."""
    texts = pd.concat([results.completions[name] for name in ("reference", "aligned")])
    floor = texts[~texts["completion"].str.contains(CHECK) & texts["finished"]]["completion_tokens"]
    reference, aligned = (tokens_text(results.sweep.loc[name, "mean_tokens"]) for name in ("reference", "aligned"))
    return (
        f"The reference writes {reference} tokens, the aligned model {aligned}, and the {len(floor)} completions of "
        f"both without any re-check have {tokens_text(floor.mean())}.\n"
    )


def short_table(results: Results) -> str:
    """The rows for README."""
    names = ["reference", "aligned", "trra-2", "trra-5", "trra-5-unmasked", "merge-5", "inra--0.5", "inra-1"]
    rows = [
        [
            name,
            alpha_text(row.alpha),
            interval_text(row),
            tokens_text(row.mean_tokens),
            "–" if name == "reference" else str(saved(results, name)),
        ]
        for name, row in ((name, results.sweep.loc[name]) for name in names)
    ]
    header = ["candidate", "alpha", "pass@1 % [95 %]", "tokens", "saved, % [95 %]"]
    return markdown_table(Cells(header, rows, left=1), None)


def budget_table(results: Results) -> str:
    """Token budgets, as the report has them."""
    return (DATA / "08_reporting" / "budget_table.md").read_text()


def recommendation(results: Results) -> str:
    """The recommendation as a quotation."""
    return f"> {results.recommendation['sentence']}\n"


Row = tuple[str, str, str]
"""A claim, whether it holds, and its figures."""


def _of_trra(results: Results) -> list[Row]:
    students = results.of_kind("trra")
    names = list(students.index)
    falls = [saved_beyond(results, after, before) for before, after in zip(["reference", *names], names, strict=False)]
    rows = [
        (
            "The larger TrRa's alpha, the fewer tokens",
            "yes" if all(step.low > 0 for step in falls) else "**no**" if any(s.high < 0 for s in falls) else "open",
            "; ".join(f"{name} saves {saved(results, name)} %" for name in names),
        )
    ]
    for name in names:
        if students.loc[name, "alpha"] <= 1:
            continue
        beyond, right = saved_beyond(results, name, "aligned"), more_right(results, name)
        ratio = saved(results, name).value / saved(results, "aligned").value
        figures = f"{beyond} points more, {ratio:.2f} times; pass@1 {right} points to the reference"
        rows.append((f"{name} saves more than the aligned model", beyond.positive, figures))
    if "trra-1" in names:
        same = saved_beyond(results, "trra-1", "aligned")
        within = "yes" if abs(same.value) <= 0.05 else "**no**"
        rows.append(("TrRa at alpha 1 saves what the aligned model saves, within 5 points", within, f"{same} points"))
    return rows


def _of_the_mask(results: Results) -> list[Row]:
    rows = []
    for name in [name for name in results.completions if name.endswith("-unmasked")]:
        masked = name.removesuffix("-unmasked")
        right, tokens = more_right(results, masked, name), saved_beyond(results, masked, name)
        figures = f"{right} points; its savings are {tokens} points larger"
        rows.append((f"{masked} is right more often than without the mask", right.positive, figures))
    return rows


def _of_merging(results: Results) -> list[Row]:
    rows = []
    for name, row in results.of_kind("merge").iterrows():
        student = f"trra-{row['alpha']:g}"
        right, tokens = more_right(results, student, name), saved_beyond(results, student, name)
        figures = f"{right} points; its savings are {tokens} points larger"
        rows.append((f"{student} is right more often than {name}, which needs no training", right.positive, figures))
    return rows


def _of_inra(results: Results) -> list[Row]:
    at_0, theirs = (
        results.completions[name][COMPLETION].sort_values(COMPLETION[:3]).to_numpy().tolist()
        for name in ("inra-0", "reference")
    )
    same = sum(one == other for one, other in zip(at_0, theirs, strict=True))
    fast, right = saved(results, "inra-1"), more_right(results, "inra-1")
    (slow,) = (name for name, row in results.of_kind("inra").iterrows() if row["alpha"] < 0)
    longer, better = saved_beyond(results, "reference", slow), more_right(results, slow)
    return [
        (
            "InRa at alpha 0 writes what the reference writes, token for token",
            "yes" if same == len(theirs) else "**no**",
            f"{same} of {len(theirs)} completions are equal",
        ),
        (
            "InRa at alpha 1 writes less than half",
            "yes" if fast.low > 0.5 else "**no**" if fast.high < 0.5 else "open",
            f"saves {fast} %; pass@1 {right} points to the reference",
        ),
        (f"{slow} thinks longer than the reference", longer.positive, f"{longer} % more tokens"),
        (f"{slow} is right more often than the reference", better.positive, f"{better} points"),
    ]


def _of_budgets(results: Results) -> list[Row]:
    rows = []
    for row in results.budgets[results.budgets["kind"] == "token_budget"].itertuples():
        forced = Estimate(row.forced_difference, row.forced_difference_low, row.forced_difference_high)
        truncated = Estimate(row.difference, row.difference_low, row.difference_high)
        figures = f"{forced} points; to plain truncation {truncated} points"
        rows.append((f"TokenBudget is right more often than forced closing at {row.budget}", forced.positive, figures))
    return rows


def claims_table(results: Results) -> str:
    """What the demo shows, and whether it holds here."""
    parts = (_of_trra, _of_the_mask, _of_merging, _of_inra, _of_budgets)
    rows = [list(row) for part in parts for row in part(results)]
    return markdown_table(Cells(["claim", "holds", "figures, with 95 % intervals"], rows, left=3), None)


def examples(results: Results) -> str:
    """One problem's first sample by four candidates: the problem whose reference completion is of median length."""
    frames = {name: frame[frame["sample"] == 0].set_index("problem_id") for name, frame in results.completions.items()}
    tokens = frames["reference"]["completion_tokens"].sort_values(kind="stable")
    problem = tokens.index[len(tokens) // 2]
    return "".join(
        f"{name}, {frames[name].loc[problem, 'completion_tokens']} tokens:\n\n"
        f"```\n{frames[name].loc[problem, 'completion'].strip()}\n```\n\n"
        for name in ("reference", "aligned", "trra-5", "inra-1")
    ).rstrip() + "\n"  # fmt: skip


def time_table(results: Results) -> str:
    """Wall time of the trainings and of the completions that the sweep drew."""
    models = DATA / "06_models"
    students = sorted(models.glob("trra/*/*"))
    figures = {
        "training the reference": training_seconds(models / "reference"),
        "training the aligned model": training_seconds(models / "aligned"),
        f"training {len(students)} students": sum(filter(None, map(training_seconds, students))),
        "training the adapter": training_seconds(models / "inra"),
        "the sweep's completions": float(results.sweep["seconds"].sum()),
        "completions inside budgets": sum(
            float(pd.read_parquet(file, columns=["seconds"])["seconds"].iloc[0])
            for file in sorted((DATA / "07_model_output" / "budget_generations").glob("*.parquet"))
        ),
    }
    rows = [[name, "–" if seconds is None else duration(seconds)] for name, seconds in figures.items()]
    return markdown_table(Cells(["what", "wall time"], rows, left=1), None)


TABLES: dict[str, Callable[[Results], str]] = {
    "sweep": sweep_table,
    "room": room,
    "short": short_table,
    "claims": claims_table,
    "budgets": budget_table,
    "recommendation": recommendation,
    "examples": examples,
    "time": time_table,
}


def fill(text: str, results: Results) -> str:
    """`text` with every table between markers replaced. KeyError for one that is not in `TABLES`."""
    return fill_marked(text, MARKED, TABLES, results)


def main() -> int:
    """Write both pages; returns 1 if there is no finished run, else 0."""
    try:
        results = read_results(DATA)
    except FileNotFoundError as error:
        print(f"There is no finished run in {DATA}: {error.filename} is missing. Make one: make smollm2")
        return 1
    for file in (PROJECT / "README.md", PROJECT / "docs" / "smollm2.md"):
        before = file.read_text()
        if (after := fill(before, results)) != before:
            file.write_text(after)
            print(f"wrote {file.relative_to(PROJECT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
