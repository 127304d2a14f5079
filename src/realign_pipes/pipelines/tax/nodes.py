"""Pipeline tax: what realignment costs on tasks that it was not made for."""

import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realign_pipes.data.parameters import Models
from realign_pipes.errors import InputError
from realign_pipes.generation.parameters import Generation
from realign_pipes.pipelines.data_prep.parameters import DataPrep
from realign_pipes.pipelines.inra.parameters import InRa
from realign_pipes.pipelines.tax.parameters import Tax
from realign_pipes.pipelines.trra.parameters import TrRa
from realign_pipes.runtime.launch import Folders
from realign_pipes.sweep.parameters import AlphaSweep

if TYPE_CHECKING:
    from datasets import Dataset
    from pandas import DataFrame
else:  # Kedro evaluates these annotations when a run starts; the imports would slow it down
    Dataset = DataFrame = Any

logger = logging.getLogger(__name__)


def measure_tax(
    parameters: Tax,
    alpha_sweep: AlphaSweep,
    data_prep: DataPrep,
    trra: TrRa,
    inra: InRa,
    models: Models,
    generation: Generation,
    folders: Folders,
    reference_model: Path,
    aligned_model: Path,
    trra_checkpoints: dict[str, Path],
    inra_checkpoint: Path,
    evaluation_set: Dataset,
    generations: dict[str, DataFrame | Callable[[], DataFrame]],
) -> DataFrame:
    """Each candidate's figures on each task, and its KL from the reference on the sweep's.

    One process with Transformers, whatever the launcher and `generation` say: the harness asks for likelihoods too.
    """
    from realign_pipes.pipelines.alpha_sweep.nodes import sweep_job
    from realign_pipes.pipelines.tax.job import MeasureTax

    sweep = sweep_job(  # which lists the candidates; nothing of it is run
        alpha_sweep, data_prep, trra, inra, models, generation, folders,
        reference_model, aligned_model, trra_checkpoints, inra_checkpoint, evaluation_set,
    )  # fmt: skip
    return MeasureTax(parameters, sweep, folders.work / "tax").run(generations, evaluation_set)


def check_harness() -> None:
    """InputError if lm-evaluation-harness is not installed. A run asks before its first node, hours before this one."""
    if find_spec("lm_eval") is None:
        raise InputError(
            "the pipeline tax needs lm-evaluation-harness, which is not installed: pip install 'realign_pipes[tax]' "
            "(in a clone: pip install -c requirements.lock lm-eval)"
        )


def tabulate_tax(tax_results: DataFrame) -> str:
    """The table as Markdown, which is logged too."""
    from realign_pipes.reporting.tables import markdown_table, tax_cells

    table = markdown_table(tax_cells(tax_results), None)
    logger.info("%s", table)
    return table
