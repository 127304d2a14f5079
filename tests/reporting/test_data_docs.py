"""Data Docs say what was expected and found, open offline, and appear when a validation stops a run."""

import html
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline
from kedro.runner import SequentialRunner
from kedro.validation import DataValidationError
from markupsafe import escape

from realign_pipes.datasets.folders import FolderDataset
from realign_pipes.hooks import DataDocsOfFailure
from realign_pipes.reporting.data_docs import build_data_docs, read_validations
from realign_pipes.runtime.launch import Folders
from realign_pipes.validation.suites import SUITES
from realign_pipes.validation.validator import GreatExpectations

ATTACK = "<script>alert('model')</script>"


@pytest.fixture(scope="module")
def failed(tmp_path_factory, generations: dict) -> tuple[Path, Path]:
    """Results of generations that fail, with a model's words among the rows, and the site of it."""
    root = tmp_path_factory.mktemp("failed")
    broken = {name: frame.copy() for name, frame in generations.items()}
    broken["aligned"].loc[[2, 5], "seconds"] = -1.0
    broken["aligned"].loc[2, "problem_id"] = ATTACK
    broken["aligned"].loc[9, ["kind", "alpha"]] = [ATTACK, 1.0]
    with pytest.raises(DataValidationError):
        GreatExpectations("generations", str(root / "validation" / "generations.json")).validate(broken)
    return root / "validation", build_data_docs(root / "validation", root / "data_docs")


def text_of(page: Path) -> str:
    return " ".join(html.unescape(re.sub(r"<style.*?</style>|<[^>]*>", " ", page.read_text(), flags=re.DOTALL)).split())


def test_the_page_has_every_expectation_of_every_data_set(validation_results: Path, tmp_path):
    docs = build_data_docs(validation_results, tmp_path / "data_docs")
    assert [path.name for path in docs.iterdir()] == ["index.html"]
    shown = text_of(docs / "index.html")
    for name, found in read_validations(validation_results).items():
        assert f"{name} {found['rows']:,} {found['expectations']} 0 {found['warnings']}" in shown
        for expectation in SUITES[name]():
            assert expectation.notes in shown and expectation.expectation_type in shown
    assert shown.count(" met all columns are there") == 2


def test_what_is_not_met_comes_first_and_names_rows(validation_results: Path, tmp_path):
    page = build_data_docs(validation_results, tmp_path / "data_docs") / "index.html"
    shown = text_of(page)
    warned = "warning no candidate has more than half of a task cut off (alpha_sweep.sampling.max_new_tokens)"
    section = shown[shown.index("sweep_results: 1 of 40 not met") :]
    assert section.index(warned) < section.index(" met ", len("sweep_results: 1 of 40 not met "))
    assert "does not hold in 2 of 42 rows (4.76 %) aligned, chain_sum, 0.75 aligned, all, 0.75" in section
    assert re.findall(r"<details( open)?>\s*<summary>(\w+): ([^<]*)<", page.read_text()) == [
        ("", "generations", "all 26 met"), (" open", "sweep_results", "1 of 40 not met"),
    ]  # fmt: skip


def test_a_failure_is_shown_with_its_count_and_rows(failed: tuple[Path, Path]):
    results, docs = failed
    assert json.loads((results / "generations.json").read_text())["failed"] == 2
    shown = text_of(docs / "index.html")
    assert "generations: 2 of 26 not met" in shown
    assert "does not hold in 2 of 3360 rows (0.0595 %)" in shown
    assert f"aligned, {ATTACK}, 2, -1.0 aligned, chain_sum-0001, 1, -1.0" in shown


def test_the_page_may_load_nothing_and_runs_nothing_that_a_model_wrote(failed: tuple[Path, Path]):
    text = (failed[1] / "index.html").read_text()
    head = text[: text.index("Content-Security-Policy") + 80]
    assert "default-src 'none'; style-src 'unsafe-inline'\"" in head
    assert not re.search(r"<(link|script|img|style)", head)  # nothing comes before it
    assert not re.search(r"<(link|script|img|iframe)|https?://", text)
    assert ATTACK not in text and str(escape(ATTACK)) in text


def test_a_page_replaces_what_an_earlier_version_left(validation_results: Path, tmp_path):
    (tmp_path / "data_docs" / "validations").mkdir(parents=True)
    build_data_docs(validation_results, tmp_path / "data_docs")
    assert [path.name for path in (tmp_path / "data_docs").iterdir()] == ["index.html"]


def test_a_folder_without_results_has_an_empty_page(tmp_path):
    (tmp_path / "validation").mkdir()
    docs = build_data_docs(tmp_path / "validation", tmp_path / "data_docs")
    assert "data set rows expectations" in text_of(docs / "index.html")


def test_a_run_that_a_validation_stops_has_data_docs(tmp_path):
    validator = {
        "class": "realign_pipes.validation.GreatExpectations",
        "on": "save",
        "options": {"suite": "sweep_results", "filepath": str(tmp_path / "validation" / "sweep_results.json")},
    }
    entry = {"type": "pandas.CSVDataset", "filepath": str(tmp_path / "sweep.csv"), "validator": validator}
    catalog = DataCatalog.from_config({"sweep_results": entry})
    catalog["data_docs"] = FolderDataset(filepath=str(tmp_path / "data_docs"))
    catalog["frame"] = pd.DataFrame({"candidate": ["reference"]})
    pipeline = Pipeline([Node(lambda frame: frame, inputs="frame", outputs="sweep_results", name="save")])
    with pytest.raises(DataValidationError) as raised:
        SequentialRunner().run(pipeline, catalog)
    hook = DataDocsOfFailure()
    hook.folders = Folders(work=tmp_path / "work", logs=tmp_path / "logs", validation=tmp_path / "validation")
    hook.on_pipeline_error(raised.value, catalog)
    index = tmp_path / "data_docs" / "index.html"
    missing = "missing ['alpha', 'bytes', 'difference', 'difference_low'"
    assert missing in text_of(index)
    assert raised.value.__notes__ == [f"What was found: {index}"]
    index.unlink()
    hook.on_pipeline_error(ValueError("other"), catalog)
    assert not index.exists()
