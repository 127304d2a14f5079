"""Stage alpha_sweep: measure every candidate on the evaluation set."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realign_pipes.data.parameters import Models
from realign_pipes.generation.parameters import Generation
from realign_pipes.pipelines.alpha_sweep.parameters import AlphaSweep
from realign_pipes.pipelines.data_prep.parameters import DataPrep
from realign_pipes.pipelines.inra.parameters import InRa
from realign_pipes.pipelines.trra.parameters import TrRa
from realign_pipes.runtime.launch import Folders, Launcher, launch

if TYPE_CHECKING:
    from realign_pipes.pipelines.alpha_sweep.job import MeasureCandidates

logger = logging.getLogger(__name__)


def sweep(
    parameters: AlphaSweep,
    data_prep: DataPrep,
    trra: TrRa,
    inra: InRa,
    models: Models,
    generation: Generation,
    launcher: Launcher,
    folders: Folders,
    reference_model: Path,
    aligned_model: Path,
    trra_checkpoints: dict[str, Path],
    inra_checkpoint: Path,
    evaluation_set: Any,
) -> tuple[dict[str, Any], dict[str, Any], Any, dict[str, Any]]:
    """Graded completions by candidate, those inside token budgets, the budgets' figures (DataFrames), and the costs of
    the candidates.

    With vLLM it is one process, whatever the launcher says: it only asks, and its servers use the GPUs.
    """
    import pandas as pd

    from realign_pipes.pipelines.alpha_sweep.job import Generations
    from realign_pipes.sweep.metrics import summarise_budgets

    if left := sorted(trra_checkpoints.keys() - trra.all_students().keys()):
        logger.warning(
            "not measured, as the parameters of trra do not name them: %s. Remove their folders from trra_checkpoints: "
            "DVC counts them among what alpha_sweep reads.",
            ", ".join(left),
        )
    job = sweep_job(
        parameters, data_prep, trra, inra, models, generation, folders,
        reference_model, aligned_model, trra_checkpoints, inra_checkpoint, evaluation_set,
    )  # fmt: skip
    if generation.engine == "vllm" and launcher.num_processes > 1:
        logger.info("alpha_sweep runs in one process: vLLM itself uses several GPUs (generation.data_parallel_size)")
        launcher = Launcher(num_processes=1, config_file=None)
    made = launch(job, Generations, launcher, folders.work / "launch" / "alpha_sweep", training=None)
    generations, budgets = (
        {name: pd.read_parquet(file) for name, file in files.items()} for files in (made.sweep, made.budgets)
    )
    # Not in a node of its own: without budgets there would be no partition to load.
    results = summarise_budgets(
        budgets, bootstrap_samples=parameters.bootstrap_samples, bootstrap_seed=parameters.bootstrap_seed
    )
    return generations, budgets, results, {name: cost.model_dump() for name, cost in made.costs.items()}


def sweep_job(
    parameters: AlphaSweep,
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
    evaluation_set: Any,
) -> "MeasureCandidates":
    """The job that lists the candidates and measures them; the pipeline tax takes the list alone."""
    from realign_pipes.datasets.arrow import folder_of
    from realign_pipes.models.hub import find_checkpoint
    from realign_pipes.pipelines.alpha_sweep.job import MeasureCandidates

    return MeasureCandidates(
        parameters=parameters,
        generation=generation,
        tasks=data_prep.tasks,
        trra=trra,
        inra_plausibility=inra.plausibility,
        reference=reference_model,
        aligned=aligned_model,
        trra_checkpoints=trra_checkpoints,
        inra_checkpoint=inra_checkpoint,
        problems=folder_of(evaluation_set),
        work=folders.work / "alpha_sweep",
        instruction=data_prep.instruction,
        others={name: find_checkpoint(checkpoint) for name, checkpoint in parameters.others.items()},
        chat_template=models.chat_template,
        attn_implementation=models.attn_implementation,
    )


def summarise(parameters: AlphaSweep, generations: dict[str, Any], candidate_costs: dict[str, Any]) -> Any:
    """Each candidate's figures for each task and over all tasks, with bootstrap intervals (a DataFrame)."""
    from realign_pipes.sweep.metrics import summarise_sweep

    return summarise_sweep(
        generations,
        bootstrap_samples=parameters.bootstrap_samples,
        bootstrap_seed=parameters.bootstrap_seed,
        costs=candidate_costs,
    )
