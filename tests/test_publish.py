"""`make publish`: tables between markers, and the picture."""

import json
import struct
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import plotly.io
import publish
import pytest

PROJECT = Path(__file__).parents[1]


@pytest.fixture
def reporting(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(publish, "REPORTING", tmp_path)
    return tmp_path


def test_a_table_between_markers_is_made_anew_and_nothing_else(monkeypatch):
    monkeypatch.setattr(publish, "TABLES", {"one": lambda: "| \\1 |\n", "two": lambda: "other\n"})
    text = "before\n<!-- table:one -->\n| old |\n<!-- /table -->\nbetween\n<!-- table:two -->\n<!-- /table -->\nafter\n"
    made = text.replace("| old |", "| \\1 |").replace("<!-- table:two -->\n", "<!-- table:two -->\nother\n")
    assert publish.fill(text) == made
    assert publish.fill(made) == made
    with pytest.raises(KeyError, match="three"):
        publish.fill("<!-- table:three -->\n<!-- /table -->")


@pytest.mark.parametrize(
    "file", [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))], ids=lambda file: file.name
)
def test_every_marker_in_a_page_names_a_table_and_is_closed(file):
    text = file.read_text()
    found = publish.MARKED.findall(text)
    assert {name for _, name, _ in found} <= set(publish.TABLES)
    assert text.count("<!-- table:") == text.count("<!-- /table -->") == len(found)


def test_the_short_table_has_rows_of_each_kind_and_the_recommended_one(reporting):
    (reporting / "recommendation.json").write_text(json.dumps({"candidate": "inra-0.5", "margin": 0.02}))
    rows = [
        ("reference", "reference", None, 0.98, 60, 0.0, 0.0),
        ("aligned", "aligned", None, 0.97, 48, 0.2, -0.03),
        ("dera-0.5", "dera", 0.5, 0.98, 54, 0.1, 0.0),
        ("dera-3", "dera", 3, 0.98, 42, 0.3, -0.021),
        ("merge-2", "merge", 2, 0.5, 42, 0.3, -0.021),
        ("trra-3", "trra", 3, 0.98, 42, 0.3, -0.02),
        ("inra--0.25", "inra", -0.25, 0.99, 66, -0.1, 0.0),
        ("inra-0.5", "inra", 0.5, 0.985, 15, 0.75, -0.02),
        ("inra-1", "inra", 1.0, 0.985, 12, 0.8, -0.021),
    ]
    columns = ["candidate", "kind", "alpha", "pass_at_1", "mean_tokens", "token_reduction", "difference_low"]
    frame = pd.DataFrame(rows, columns=columns).assign(pass_at_1_low=0.4, pass_at_1_high=1.0, plausibility=0.0)
    frame.to_csv(reporting / "sweep_table.csv", index=False)
    assert publish.short_table() == (
        "| candidate | alpha | pass@1 % [95 %] | tokens | reduction |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| reference | – | 98.0 [40.0, 100.0] | 60.0 | – |\n"
        "| aligned | – | 97.0 [40.0, 100.0] | 48.0 | 20.0 % |\n"
        "| dera-3 | 3 | 98.0 [40.0, 100.0] | 42.0 | 30.0 % |\n"
        "| merge-2 | 2 | 50.0 [40.0, 100.0] | 42.0 | 30.0 % |\n"
        "| trra-3 | 3 | 98.0 [40.0, 100.0] | 42.0 | 30.0 % |\n"
        "| inra--0.25 | −0.25 | 99.0 [40.0, 100.0] | 66.0 | −10.0 % |\n"
        "| **inra-0.5** | **0.5** | **98.5 [40.0, 100.0]** | **15.0** | **75.0 %** |\n"
        "| inra-1 | 1 | 98.5 [40.0, 100.0] | 12.0 | 80.0 % |\n"
    )


def test_the_long_tables_are_the_runs(reporting):
    (reporting / "sweep_table.md").write_text("| a |\n| --- |\n| 1 |\n\nUse it.\n")
    (reporting / "budget_table.md").write_text("| b |\n")
    (reporting / "recommendation.json").write_text(json.dumps({"sentence": "Use it."}))
    assert publish.sweep_table() == "| a |\n| --- |\n| 1 |\n"
    assert publish.recommendation() == "> Use it.\n"
    assert publish.budget_table() == "| b |\n"


@pytest.mark.browser
def test_the_picture_has_all_figures(reporting, tmp_path):
    for name, height in (("pareto", 200), ("alpha", 300), ("budget", 400)):
        figure = go.Figure(go.Scatter(y=[1, 2]), layout={"height": height})
        plotly.io.write_json(figure, reporting / f"{name}_figure.json")
    publish.draw(reporting, ("pareto", "alpha", "budget"), tmp_path / "sweep.png")
    width, height = struct.unpack(">II", (tmp_path / "sweep.png").read_bytes()[16:24])
    assert (width, height) == (publish.WIDTH, 900)
