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

from realign_pipes.datasets.folders import FolderDataset, WorkFolderDataset
from realign_pipes.hooks import DataDocsOfFailure
from realign_pipes.reporting.data_docs import build_data_docs, read_validations
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


def test_the_index_links_every_validation_and_names_what_is_not_met(validation_results: Path, tmp_path):
    docs = build_data_docs(validation_results, tmp_path / "data_docs")
    page = (docs / "index.html").read_text()
    links = re.findall(r'href="([^"]*)">(\w+)<', page)
    assert [name for _, name in links] == ["generations", "sweep_results"]
    assert all((docs / link).is_file() for link, _ in links)
    warned = "no candidate has more than half of a task cut off (alpha_sweep.sampling.max_new_tokens)"
    assert f"{warned}: not so in 2 of 42 rows (4.76 %) — aligned, chain_sum, 0.75; aligned, all, 0.75" in text_of(
        docs / "index.html"
    )


def test_every_page_has_the_words_of_its_expectations(validation_results: Path, tmp_path):
    docs = build_data_docs(validation_results, tmp_path / "data_docs")
    for name, found in read_validations(validation_results).items():
        (page,) = (docs / "validations" / name).rglob("*.html")
        shown, suite = text_of(page), text_of(docs / "expectations" / f"{name}.html")
        assert "Status: Succeeded" in shown
        for expectation in SUITES[name]():
            assert expectation.notes in shown and expectation.notes in suite
        assert shown.count("(only a warning)") == 1
        for link in re.findall(r'href="([^"#]*\.html)"', page.read_text()):
            assert (page.parent / link).resolve().is_file(), link
        assert f"Evaluated Expectations {found['expectations']}" in shown


def test_a_failure_is_shown_with_its_count_and_rows(failed: tuple[Path, Path]):
    results, docs = failed
    assert json.loads((results / "generations.json").read_text())["failed"] == 2
    index = text_of(docs / "index.html")
    assert "seconds is a time that has passed: not so in 2 of 3360 rows (0.0595 %)" in index
    assert f"aligned, {ATTACK}, 2, -1.0; aligned, chain_sum-0001, 1, -1.0" in index
    (page,) = (docs / "validations").rglob("*.html")
    assert "Status: Failed" in text_of(page) and "2 unexpected values found" in text_of(page)


def test_pages_may_load_nothing_and_run_nothing_that_a_model_wrote(failed: tuple[Path, Path]):
    pages = list(failed[1].rglob("*.html"))
    assert len(pages) == 3 and not (failed[1] / "static").exists()
    for page in pages:
        text = page.read_text()
        head = text[: text.index("Content-Security-Policy") + 80]
        assert "default-src 'none'; style-src 'unsafe-inline'" in head
        assert not re.search(r"<(link|script|img|style)", head)  # nothing comes before it
        assert ATTACK not in text
    (validation,) = (failed[1] / "validations").rglob("*.html")
    assert html.escape(ATTACK) in validation.read_text()


def test_a_site_replaces_the_one_before(validation_results: Path, failed: tuple[Path, Path], tmp_path):
    build_data_docs(validation_results, tmp_path / "data_docs")
    build_data_docs(failed[0], tmp_path / "data_docs")
    assert [path.name for path in (tmp_path / "data_docs" / "validations").iterdir()] == ["generations"]


def test_a_folder_without_results_has_an_empty_index(tmp_path):
    (tmp_path / "validation").mkdir()
    docs = build_data_docs(tmp_path / "validation", tmp_path / "data_docs")
    assert "data rows expectations" in text_of(docs / "index.html")


def test_a_run_that_a_validation_stops_has_data_docs(generations: dict, tmp_path, caplog):
    validator = {
        "class": "realign_pipes.validation.GreatExpectations",
        "on": "save",
        "options": {"suite": "sweep_results", "filepath": str(tmp_path / "validation" / "sweep_results.json")},
    }
    entry = {"type": "pandas.CSVDataset", "filepath": str(tmp_path / "sweep.csv"), "validator": validator}
    catalog = DataCatalog.from_config({"sweep_results": entry})
    catalog["validation_results"] = WorkFolderDataset(filepath=str(tmp_path / "validation"))
    catalog["work_dir"] = WorkFolderDataset(filepath=str(tmp_path / "work"))
    catalog["data_docs"] = FolderDataset(filepath=str(tmp_path / "data_docs"))
    catalog["frame"] = pd.DataFrame({"candidate": ["reference"]})
    pipeline = Pipeline([Node(lambda frame: frame, inputs="frame", outputs="sweep_results", name="save")])
    with pytest.raises(DataValidationError) as raised:
        SequentialRunner().run(pipeline, catalog)
    DataDocsOfFailure().on_pipeline_error(raised.value, catalog)
    index = tmp_path / "data_docs" / "index.html"
    assert "the columns are there: missing ['alpha'" in text_of(index) and str(index) in caplog.text
    index.unlink()
    DataDocsOfFailure().on_pipeline_error(ValueError("other"), catalog)
    assert not index.exists()
