"""The sweep as one run of an experiment tracker, named sweep: parameters, one row per candidate, and its pages."""

import math
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from realign_pipes.reporting.tables import overall_rows
from realign_pipes.runtime.tracking import PROJECT, Tracking

NAMED = ["candidate", "kind", "alpha", "plausibility"]
FIGURES = [
    "pass_at_1",
    "pass_at_1_low",
    "pass_at_1_high",
    "difference",
    "difference_low",
    "mean_tokens",
    "token_reduction",
    "truncated",
]


def report_sweep(
    tracking: Tracking, parameters: Mapping[str, Any], sweep_results: pd.DataFrame, pages: Mapping[str, str]
) -> None:
    """Report a sweep to the tracker that `tracking` names.

    `parameters` is plain data. `pages` are the files to attach, by name. MLflow gets a run for each candidate inside
    the sweep's, as its tables and charts compare runs; the others get the candidates as a table.
    """
    report = {"mlflow": _to_mlflow, "wandb": _to_wandb, "trackio": _to_trackio}[tracking.to]
    with TemporaryDirectory() as folder:
        for name, text in pages.items():
            Path(folder, name).write_text(text, encoding="utf-8")
        report(dict(parameters), overall_rows(sweep_results)[NAMED + FIGURES], folder)


def _to_mlflow(parameters: dict[str, Any], rows: pd.DataFrame, folder: str) -> None:
    import mlflow

    with mlflow.start_run(run_name="sweep"):
        mlflow.log_params(pd.json_normalize(parameters).iloc[0].to_dict())
        mlflow.log_artifacts(folder)
        for row in rows.to_dict("records"):
            with mlflow.start_run(run_name=row["candidate"], nested=True):
                mlflow.log_params({name: row[name] for name in NAMED if row[name] == row[name]})  # not NaN
                mlflow.log_metrics({name: row[name] for name in FIGURES if math.isfinite(row[name])})


def _to_wandb(parameters: dict[str, Any], rows: pd.DataFrame, folder: str) -> None:
    import wandb

    with wandb.init(name="sweep", config=parameters) as run:
        run.log({"sweep": wandb.Table(dataframe=rows)})
        pages = wandb.Artifact("sweep", type="report")
        pages.add_dir(folder)
        run.log_artifact(pages)


def _to_trackio(parameters: dict[str, Any], rows: pd.DataFrame, folder: str) -> None:
    import trackio

    trackio.init(project=PROJECT, name="sweep", config=parameters)
    trackio.log({"sweep": trackio.Table(dataframe=rows)})
    pages = trackio.Artifact("sweep", type="report")
    pages.add_dir(folder)
    trackio.log_artifact(pages)
    trackio.finish()
