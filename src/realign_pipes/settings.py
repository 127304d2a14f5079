"""Project settings of Kedro."""

import os
from typing import Any

from realign_pipes.config import ConfigLoader
from realign_pipes.hooks import (
    DataDocsOfFailure,
    FoldersOfTheProject,
    MissingInputs,
    RenamedDatasets,
    WrongParameters,
)
from realign_pipes.runtime.lock import OneRunAtATime
from realign_pipes.runtime.run_log import RunLog
from realign_pipes.runtime.tracking import PROJECT

# How long OpenMP's threads spin before they sleep. The default makes small models fifty times slower as soon as
# anything else runs on the machine; with no spinning at all, they run at half speed when nothing else does.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# A progress bar for every data set that is written would bury the bars that matter.
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

# What trackers (parameters tracking) file runs under; and that they tell their makers nothing.
os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", PROJECT)
os.environ.setdefault("WANDB_PROJECT", PROJECT)
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

# Kedro calls the last first. Those that are called before all others: WrongParameters, then FoldersOfTheProject.
HOOKS = (
    FoldersOfTheProject(),
    WrongParameters(),
    RenamedDatasets(),
    OneRunAtATime(),
    MissingInputs(),
    DataDocsOfFailure(),
    RunLog(),
)

CONFIG_LOADER_CLASS = ConfigLoader
CONFIG_LOADER_ARGS: dict[str, Any] = {
    "base_env": "base",
    "default_run_env": "local",
    # An environment's parameters are merged into base's key by key, so it needs to hold only what differs.
    "merge_strategy": {"parameters": "soft"},
}
