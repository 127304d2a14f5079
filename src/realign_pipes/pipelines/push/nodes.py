"""Pipeline push: trained checkpoints, with their model cards, to the Hugging Face hub."""

import logging
from pathlib import Path

from realign_pipes.errors import InputError
from realign_pipes.pipelines.push.parameters import Push

logger = logging.getLogger(__name__)


def push_checkpoints(parameters: Push, trra_checkpoints: dict[str, Path], inra_checkpoint: Path) -> None:
    """Upload each student and the InRa checkpoint, or `only` one, to a branch of its name.

    InputError, before anything is uploaded, if there is no repository or no checkpoint of that name.
    """
    from realign_pipes.models.hub import push_checkpoint

    repository = parameters.repository()
    checkpoints = {**{path.name: path for path in trra_checkpoints.values()}, "inra": inra_checkpoint}
    if parameters.only is not None:
        if parameters.only not in checkpoints:
            raise InputError(f"push.only is {parameters.only}, but the checkpoints are {', '.join(checkpoints)}")
        checkpoints = {parameters.only: checkpoints[parameters.only]}
    for branch, checkpoint in checkpoints.items():
        logger.info("uploaded %s: %s", checkpoint, push_checkpoint(checkpoint, repository, branch))
