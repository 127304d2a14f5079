"""Project settings of Kedro."""

from realign_pipes.hooks import MissingInputs

HOOKS = (MissingInputs(),)

CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    # An environment's parameters are merged into base's key by key, so that it need only hold what differs.
    "merge_strategy": {"parameters": "soft"},
}
