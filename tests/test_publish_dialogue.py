"""The page of conf/dialogue: its tables, from made-up results whose figures are known."""

import json

import pandas as pd
import publish_dialogue
import pytest

METRICS = ("words", *publish_dialogue.SHARES)


def measured(candidate, alpha, words, share):
    return [
        {"candidate": candidate, "alpha": alpha, "plausibility": 0.1, "metric": metric, "task": task,
         "mean": words if metric == "words" else share, "low": 0.0, "high": 1.0}
        for metric in METRICS
        for task in ("questions", "all")
    ]  # fmt: skip


@pytest.fixture
def data(tmp_path):
    output = tmp_path / "07_model_output"
    (output / "generations").mkdir(parents=True)
    rows = measured("reference", float("nan"), 20.0, 0.5) + measured("inra-1", 1.0, 5.5, 0.25)
    pd.DataFrame(rows).to_csv(output / "metric_results.csv", index=False)
    tax = [("reference", "plain_sums", 0.9), ("reference", "KL questions", 0.0), ("reference", "KL requests", 0.0),
           ("inra-1", "plain_sums", 0.8), ("inra-1", "KL questions", 0.2), ("inra-1", "KL requests", 0.4)]  # fmt: skip
    pd.DataFrame(tax, columns=["candidate", "task", "value"]).to_csv(output / "tax_results.csv", index=False)
    pd.DataFrame({"candidate": []}).to_parquet(output / "scores.parquet")
    (tmp_path / "08_reporting").mkdir()
    (tmp_path / "08_reporting" / "recommendation.json").write_text(
        json.dumps({"candidate": "inra-1", "sentence": "Use it."})
    )
    return tmp_path


def test_a_row_has_words_shares_divergence_and_sums(data):
    run = publish_dialogue.Run.read(data)
    _, _, reference, inra = publish_dialogue.results_table(run).splitlines()
    assert "| 20.0 [0.0, 1.0] | 50.0 [0.0, 100.0] |" in reference and reference.endswith("| 0.00 | 90.0 |")
    assert "| **5.5 [0.0, 1.0]** | **25.0 [" in inra and inra.endswith("| **0.30** | **80.0** |"), "recommended: bold"
    assert publish_dialogue.recommended(run) == "> Use it.\n"


def test_the_page_has_places_for_every_table():
    text = publish_dialogue.PAGE.read_text()
    found = [name for _, name, _ in publish_dialogue.MARKED.findall(text)]
    assert sorted(found) == sorted(publish_dialogue.TABLES)
    assert text.count("<!-- dialogue:") == text.count("<!-- /dialogue -->") == len(found)


def test_without_a_finished_run_it_says_how_to_make_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(publish_dialogue, "DATA", tmp_path)
    assert publish_dialogue.main() == 1
    assert "kedro run --env dialogue" in capsys.readouterr().out
