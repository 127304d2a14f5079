"""Copies the last default run's tables and figures into README and docs: `make publish`.

A table goes between `<!-- table:NAME -->` and `<!-- /table -->`, where NAME is a key of `TABLES`. Look at the picture
that it draws (docs/images/sweep.png), and at `git diff`, before you commit.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import plotly.io
from marked import fill_marked, marker
from playwright.sync_api import sync_playwright

from realign_pipes.reporting.tables import (
    Cells,
    alpha_text,
    interval_text,
    markdown_table,
    reduction_text,
    tokens_text,
)

PROJECT = Path(__file__).parents[1]
REPORTING = PROJECT / "data" / "08_reporting"
MARKED = marker("table")
WIDTH = 1300
"""Of the picture, in pixels."""


def short_table() -> str:
    """Both models, what goes beyond the aligned one, InRa on either side of the reference, and the recommended."""
    rows = pd.read_csv(REPORTING / "sweep_table.csv").set_index("candidate", drop=False)
    recommendation = json.loads((REPORTING / "recommendation.json").read_text())
    names = ["reference", "aligned", "merge-2", "dera-3", "trra-3", "inra--0.25", "inra-1"]
    shown = rows[rows.index.isin([*names, recommendation["candidate"]])]
    cells = [
        [row.candidate, alpha_text(row.alpha), interval_text(row), tokens_text(row.mean_tokens), reduction_text(row)]
        for row in shown.itertuples()
    ]
    header = ["candidate", "alpha", "pass@1 % [95 %]", "tokens", "reduction"]
    return markdown_table(Cells(header, cells, left=1), recommendation["candidate"])


def sweep_table() -> str:
    """All candidates; the recommendation stands below them in the file."""
    return (REPORTING / "sweep_table.md").read_text().partition("\n\n")[0] + "\n"


def recommendation() -> str:
    """The recommendation as a quotation."""
    return f"> {json.loads((REPORTING / 'recommendation.json').read_text())['sentence']}\n"


def budget_table() -> str:
    """Token budgets."""
    return (REPORTING / "budget_table.md").read_text()


def inra_example() -> str:
    """What README's example of InRa prints."""
    readme = (PROJECT / "README.md").read_text()
    (example,) = (
        code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "data/06_models/inra" in code
    )
    printed = subprocess.run([sys.executable, "-c", example], cwd=PROJECT, capture_output=True, text=True, check=True)
    return f"```\n{printed.stdout}```\n"


TABLES: dict[str, Callable[[], str]] = {
    "sweep-short": short_table,
    "sweep": sweep_table,
    "recommendation": recommendation,
    "budgets": budget_table,
    "inra-example": inra_example,
}


def fill(text: str) -> str:
    """`text` with every table between markers replaced. KeyError for one that is not in `TABLES`."""
    return fill_marked(text, MARKED, TABLES)


def draw(reporting: Path, names: tuple[str, ...], target: Path) -> None:
    """These figures of a run, one below the other, as the report draws them."""
    figures = [plotly.io.read_json(reporting / f"{name}_figure.json") for name in names]
    parts = [plotly.io.to_html(figure, full_html=False, include_plotlyjs=number == 0, config={"staticPlot": True})
             for number, figure in enumerate(figures)]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "figures.html"
        page_file.write_text(f"<meta charset=utf-8><body style='margin:0'>{''.join(parts)}", encoding="utf-8")
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 800})
        page.goto(page_file.as_uri())
        page.locator(".main-svg").nth(len(figures)).wait_for()
        page.screenshot(path=target, full_page=True)
        browser.close()


if __name__ == "__main__":
    for file in [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]:
        before = file.read_text()
        if (after := fill(before)) != before:
            file.write_text(after)
            print(f"wrote {file.relative_to(PROJECT)}")
    draw(REPORTING, ("pareto", "alpha", "budget"), PROJECT / "docs" / "images" / "sweep.png")
    print("wrote docs/images/sweep.png: look at it")
