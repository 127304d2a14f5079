"""Project settings of Kedro."""

import os

from realign_pipes.hooks import MissingInputs

# OpenMP's threads spin while they wait, which makes small models many times slower as soon as anything else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

HOOKS = (MissingInputs(),)

CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    # An environment's parameters are merged into base's key by key, so that it need only hold what differs.
    "merge_strategy": {"parameters": "soft"},
}
