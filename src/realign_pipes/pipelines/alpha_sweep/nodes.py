"""Stage alpha_sweep: measure every candidate on the evaluation set."""

import logging
from pathlib import Path
from typing import Any

from realign_pipes.parameters import AlphaSweep, DataPrep, Launcher, TrRa

logger = logging.getLogger(__name__)


def sweep(
    parameters: AlphaSweep,
    data_prep: DataPrep,
    trra: TrRa,
    launcher: Launcher,
    reference_model: Path,
    aligned_model: Path,
    trra_checkpoints: dict[str, Path],
    inra_checkpoint: Path,
    evaluation_set: Any,
    work_dir: Path,
) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Graded completions by candidate, those inside token budgets, and the budgets' figures (a DataFrame)."""
    from realign_pipes.evaluation.metrics import summarise_budgets
    from realign_pipes.evaluation.sweep import measure
    from realign_pipes.launcher import run_job

    named = {name for alpha in trra.alphas for name in trra.checkpoint_names(alpha)}
    if left := sorted(trra_checkpoints.keys() - named):
        logger.warning(
            "not measured, as the parameters of trra do not name them: %s. Remove their folders from trra_checkpoints: "
            "DVC counts them among what alpha_sweep reads.",
            ", ".join(left),
        )
    generations, budgets = run_job(
        measure,
        launcher,
        work_dir / "launch" / "alpha_sweep",
        work=work_dir / "alpha_sweep",
        parameters=parameters,
        tasks=data_prep.tasks,
        trra=trra,
        reference=reference_model,
        aligned=aligned_model,
        trra_checkpoints=trra_checkpoints,
        inra_checkpoint=inra_checkpoint,
        problems=evaluation_set,
    )
    # Here and not in a node of its own: without budgets there is no partition that it could load.
    results = summarise_budgets(
        budgets, bootstrap_samples=parameters.bootstrap_samples, bootstrap_seed=parameters.bootstrap_seed
    )
    return generations, budgets, results


def summarise(parameters: AlphaSweep, generations: dict[str, Any]) -> Any:
    """Each candidate's figures for each task and over all tasks, with bootstrap intervals (a DataFrame)."""
    from realign_pipes.evaluation.metrics import summarise_sweep

    return summarise_sweep(
        generations, bootstrap_samples=parameters.bootstrap_samples, bootstrap_seed=parameters.bootstrap_seed
    )
