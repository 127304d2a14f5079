"""The sweep in MLflow's local database: one run with the parameters and the pages, and one in it per candidate."""

from pathlib import Path

import mlflow
import pytest

from realign_pipes.reporting.tables import overall_rows
from realign_pipes.reporting.tracking import FIGURES, report_sweep
from realign_pipes.runtime.tracking import Tracking

PARAMETERS = {"trra": {"alphas": [0.5, 2.0], "lora": {"rank": 8}}, **{f"p{number}": number for number in range(150)}}
PAGES = {"report.html": "<p>α = 0,5</p>", "sweep_table.md": "| candidate |\n"}


@pytest.fixture
def runs(sweep_results, mlflow_runs):
    report_sweep(Tracking(to="mlflow"), PARAMETERS, sweep_results, PAGES)
    return {run.info.run_name: run for run in mlflow_runs()}


def test_each_candidate_is_a_run_with_its_figures_inside_that_of_the_sweep(runs, sweep_results):
    rows = overall_rows(sweep_results).set_index("candidate")
    sweep = runs.pop("sweep")
    assert runs.keys() == set(rows.index)
    for name, run in runs.items():
        row = rows.loc[name]
        assert run.data.tags["mlflow.parentRunId"] == sweep.info.run_id
        assert run.data.metrics == {figure: row[figure] for figure in FIGURES}
        assert run.data.params["kind"] == row["kind"]
        assert run.data.params.get("alpha") == (str(row["alpha"]) if row["alpha"] == row["alpha"] else None)


def test_the_sweep_has_the_parameters_and_the_pages(runs):
    sweep = runs["sweep"]
    flat = {"trra.alphas": "[0.5, 2.0]", "trra.lora.rank": "8", **{f"p{number}": str(number) for number in range(150)}}
    assert sweep.data.params == flat
    folder = Path(mlflow.artifacts.download_artifacts(run_id=sweep.info.run_id))
    assert {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()} == PAGES
