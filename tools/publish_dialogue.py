"""Fills the tables of docs/dialogue.md, and draws its picture, from the last run of conf/dialogue with its tax.

kedro run --env dialogue --pipelines dialogue_models,realign,tax,turns && python tools/publish_dialogue.py

A table goes between `<!-- dialogue:NAME -->` and `<!-- /dialogue -->`, where NAME is a key of `TABLES`.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from marked import fill_marked, marker
from publish import PROJECT, draw

from realign_pipes.config import ConfigLoader
from realign_pipes.graders.metrics import find_metric, metrics_of
from realign_pipes.pipelines.scores.parameters import Scores
from realign_pipes.reporting.recommendation import recommend
from realign_pipes.reporting.tables import Cells, alpha_text, markdown_table, percent, percent_interval
from realign_pipes.settings import CONFIG_LOADER_ARGS

DATA = PROJECT / "data" / "dialogue"
PAGE = PROJECT / "docs" / "dialogue.md"
MARKED = marker("dialogue")
SHARES = ("fact", "refuses_harmful", "refuses_harmless", "distinct")
EXAMPLES = ("reference", "aligned", "trra-3", "inra-1")


@dataclass(frozen=True)
class Run:
    """What a finished run of conf/dialogue has measured."""

    metrics: pd.DataFrame
    tax: pd.DataFrame
    completions: dict[str, pd.DataFrame]
    scores: pd.DataFrame
    recommendation: dict[str, object]

    @classmethod
    def read(cls, data: Path) -> "Run":
        """FileNotFoundError if a part of it is missing."""
        output = data / "07_model_output"
        return cls(
            pd.read_csv(output / "metric_results.csv").query("task == 'all'"),
            pd.read_csv(output / "tax_results.csv"),
            {file.stem: pd.read_parquet(file) for file in sorted((output / "generations").glob("*.parquet"))},
            pd.read_parquet(output / "scores.parquet"),
            json.loads((data / "08_reporting" / "recommendation.json").read_text()),
        )


def results_table(run: Run) -> str:
    """Every candidate's words, shares and sums. Intervals are 95 %."""
    tax = run.tax.pivot(index="candidate", columns="task", values="value")
    far = tax[[name for name in tax.columns if name.startswith("KL ")]].mean(axis=1)
    rows = []
    for name in run.metrics["candidate"].unique():
        found = run.metrics[run.metrics["candidate"] == name].set_index("metric")
        words = found.loc["words"]
        shares = [percent_interval(*found.loc[metric, ["mean", "low", "high"]]) for metric in SHARES]
        long = f"{words['mean']:.1f} [{words['low']:.1f}, {words['high']:.1f}]"
        costs = [f"{far[name]:.2f}", percent(tax.loc[name, "plain_sums"])] if name in tax.index else ["–", "–"]
        rows.append([name, alpha_text(words["alpha"]), f"{words['plausibility']:g}", long, *shares, *costs])
    header = [
        "candidate",
        "alpha",
        "beta",
        "words",
        "fact %",
        "refuses harmful %",
        "refuses harmless %",
        "distinct-2 %",
    ]
    return markdown_table(Cells([*header, "KL, nats", "sums %"], rows, left=1), str(run.recommendation["candidate"]))


def recommended(run: Run) -> str:
    """The recommendation as a quotation."""
    return f"> {run.recommendation['sentence']}\n"


def safest(run: Run) -> str:
    """What would be recommended to refuse more of what is harmful and little of what is not."""
    parameters = ConfigLoader(PROJECT / "conf", "dialogue", **CONFIG_LOADER_ARGS)["parameters"]
    known = metrics_of(Scores.model_validate(parameters["scores"]))
    gain, loss = (find_metric(known, f"refuses_{harm}", "reporting") for harm in ("harmful", "harmless"))
    found = recommend(
        run.completions,
        parameters["reporting"]["margin"],
        bootstrap_samples=parameters["alpha_sweep"]["bootstrap_samples"],
        bootstrap_seed=parameters["alpha_sweep"]["bootstrap_seed"],
        gain=gain,
        loss=loss,
        scores=run.scores,
    )
    return f"> {found['sentence']}\n"


def examples(run: Run) -> str:
    """A question and two requests, with the first reply of four candidates."""
    asked = []
    for task, wanted in (("questions", "Where do I live?"), ("requests", " my "), ("requests", " of ")):
        lines = (DATA / "01_raw" / f"{task}.jsonl").read_text().splitlines()
        number, turns = next(
            (number, row["messages"][:-1])
            for number, row in enumerate(map(json.loads, lines))
            if wanted in row["messages"][-2]["content"]
        )
        said = " / ".join(f"*{turn['content']}*" for turn in turns)
        replies = []
        for name in EXAMPLES:
            frame = run.completions[name]
            row = frame[(frame["problem_id"] == f"{task}-{number:05d}") & (frame["sample"] == 0)].iloc[0]
            replies.append(f"- {name}: {row['completion']}")
        asked.append(f"{said}\n\n" + "\n".join(replies) + "\n")
    return "\n".join(asked)


def turns(run: Run) -> str:
    """Conversations whose alpha changes by turn."""
    return (DATA / "08_reporting" / "turns_table.md").read_text()


TABLES: dict[str, Callable[[Run], str]] = {
    "turns": turns,
    "results": results_table,
    "recommendation": recommended,
    "safest": safest,
    "examples": examples,
}


def fill(text: str, run: Run) -> str:
    """`text` with every table between markers replaced. KeyError for one that is not in `TABLES`."""
    return fill_marked(text, MARKED, TABLES, run)


def main() -> int:
    """Write the page and its picture; returns 1 if there is no finished run, else 0."""
    try:
        run = Run.read(DATA)
    except FileNotFoundError as error:
        print(f"There is no finished run in {DATA}: {error.filename} is missing. "
              "Make one: kedro run --env dialogue --pipelines dialogue_models,realign,tax,turns")  # fmt: skip
        return 1
    PAGE.write_text(fill(PAGE.read_text(), run))
    print(f"wrote {PAGE.relative_to(PROJECT)}")
    picture = PROJECT / "docs" / "images" / "dialogue.png"
    draw(DATA / "08_reporting", ("pareto", "alpha"), picture)
    print(f"wrote {picture.relative_to(PROJECT)}: look at it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
