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

# How long OpenMP's threads spin before they sleep. Its default makes small models fifty times slower as soon as
# anything else runs on the machine; not to spin at all, half as fast when nothing does.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# A bar for the writing of every data set would bury the bars that matter.
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

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
    # An environment's parameters are merged into base's key by key, so that it need only hold what differs.
    "merge_strategy": {"parameters": "soft"},
}
