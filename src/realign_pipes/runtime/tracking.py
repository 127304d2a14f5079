"""parameters_tracking.yml: the experiment tracker that trainings and the sweep report to.

`realign_pipes.reporting.tracking` reports the sweep. Where runs go and under which account is the tracker's own
business: its environment variables and its login apply.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from realign_pipes.runtime.parameters import Parameters

PROJECT = "realign_pipes"
"""What runs are filed under: MLflow's experiment, the project of the others."""

INSTALL = {"mlflow": "mlflow-skinny sqlalchemy alembic", "wandb": "wandb", "trackio": "trackio"}


class Tracking(Parameters):
    """parameters_tracking.yml: the experiment tracker that trainings and the sweep report to."""

    to: Literal["mlflow", "wandb", "trackio", "none"]

    @field_validator("to")
    @classmethod
    def _is_installed(cls, to: str) -> str:
        if to in INSTALL and find_spec(to) is None:
            raise ValueError(f"{to} is not installed. Install it (pip install {INSTALL[to]}), or set tracking.to=none")
        return to


NOT_TRACKED = Tracking(to="none")


def training_run(tracking: Tracking, folder: Path) -> dict[str, Any]:
    """The fields of TrainingArguments by which a training in `folder` reports as a run named after the folder."""
    return {"report_to": tracking.to, "run_name": folder.name, "project": PROJECT}
