"""Pipeline push: trained checkpoints, with their model cards, to the Hugging Face hub."""

import logging
from pathlib import Path

from realign_pipes.errors import InputError
from realign_pipes.pipelines.push.parameters import Push
from realign_pipes.pipelines.trra.parameters import TrRa

logger = logging.getLogger(__name__)


def push_checkpoints(parameters: Push, trra: TrRa, trra_checkpoints: dict[str, Path], pushed_inra: Path) -> None:
    """Upload each student that the parameters of trra name and the InRa checkpoint, or `only` one, to a branch of its
    name. Those that are not trained are left out.

    InputError, before anything is uploaded, if there is no repository or no checkpoint of that name, or none at all.
    """
    from realign_pipes.models.hub import push_checkpoint

    repository = parameters.repository()
    students = trra.all_students()
    if left := sorted(trra_checkpoints.keys() - students.keys()):
        logger.warning("not uploaded, as the parameters of trra do not name them: %s", ", ".join(left))
    checkpoints = {one.name: trra_checkpoints[name] for name, one in students.items() if name in trra_checkpoints}
    if pushed_inra.is_dir():
        checkpoints["inra"] = pushed_inra
    if not checkpoints:
        raise InputError("there is no checkpoint to upload. Train them first: kedro run --pipelines trra,inra, or "
                         "dvc repro")  # fmt: skip
    if parameters.only is not None:
        if parameters.only not in checkpoints:
            raise InputError(f"push.only is {parameters.only}, but the checkpoints are {', '.join(checkpoints)}")
        checkpoints = {parameters.only: checkpoints[parameters.only]}
    for branch, checkpoint in checkpoints.items():
        logger.info("uploaded %s: %s", checkpoint, push_checkpoint(checkpoint, repository, branch))
