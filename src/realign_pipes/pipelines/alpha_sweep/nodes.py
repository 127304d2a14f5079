"""Stage alpha_sweep: measure every candidate on the evaluation set."""

import logging
import math
from pathlib import Path
from typing import Any

from realign_pipes.parameters import AlphaSweep, DataPrep, TrRa

logger = logging.getLogger(__name__)


def sweep(
    parameters: AlphaSweep,
    data_prep: DataPrep,
    trra: TrRa,
    reference_model: Path,
    aligned_model: Path,
    trra_checkpoints: dict[str, Path],
    inra_checkpoint: Path,
    evaluation_set: Any,
    work_dir: Path,
) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Graded completions by candidate, those inside token budgets, and the budgets' figures (a DataFrame).

    Candidates that an interrupted run finished are not measured again. Of TrRa's checkpoints those are measured that
    `trra` names; FileNotFoundError if one is not there.
    """
    from realign_pipes.evaluation.metrics import summarise_budgets
    from realign_pipes.evaluation.sweep import Candidate, Evaluator, evaluate_budgets
    from realign_pipes.realignment.checkpoints import check_pair, default_device, fingerprint_model
    from realign_pipes.realignment.model_card import read_metadata

    trained = _trained(trra, trra_checkpoints)
    tokenizer = check_pair(reference_model, aligned_model)
    candidates = [
        Candidate("reference", "reference", math.nan, (reference_model,)),
        Candidate("aligned", "aligned", math.nan, (aligned_model,)),
        *(
            Candidate(f"dera-{alpha:g}", "dera", alpha, (reference_model, aligned_model))
            for alpha in parameters.dera_alphas
        ),
        *trained,
    ]
    fingerprints = {path: fingerprint_model(path) for path in (reference_model, aligned_model)}
    stages = {**{candidate.checkpoints[0]: "trra" for candidate in trained}, inra_checkpoint: "inra"}
    for path, stage in stages.items():
        if read_metadata(path)["reference"]["fingerprint"] != fingerprints[reference_model]:
            raise ValueError(f"{path} was trained from another reference than {reference_model}. "
                             f"Run the stage {stage} again: kedro run --pipeline {stage}")  # fmt: skip
        fingerprints[path] = fingerprint_model(path)
    inra = [Candidate(f"inra-{alpha:g}", "inra", alpha, (inra_checkpoint,)) for alpha in parameters.inra_alphas]
    evaluator = Evaluator(
        evaluation_set,
        data_prep.tasks,
        fingerprints=fingerprints,
        tokenizer=tokenizer,
        device=default_device(),
        work=work_dir / "alpha_sweep",
    )
    generations = {}
    for together in [*([candidate] for candidate in candidates), inra]:  # all alphas of InRa are one model
        generations.update(evaluator.evaluate(together, parameters.sampling))
    budgets = evaluate_budgets(
        evaluator,
        reference_model,
        inra_checkpoint,
        parameters.budgets.tokens,
        parameters.budgets.ramp,
        parameters.sampling,
    )
    # Here and not in a node of its own: without budgets there is no partition that it could load.
    results = summarise_budgets(
        budgets, bootstrap_samples=parameters.bootstrap_samples, bootstrap_seed=parameters.bootstrap_seed
    )
    return generations, budgets, results


def _trained(trra: TrRa, checkpoints: dict[str, Path]) -> list[Any]:
    """A candidate for each checkpoint that `trra` names."""
    from realign_pipes.evaluation.sweep import Candidate

    named = {alpha: trra.checkpoint_names(alpha) for alpha in trra.alphas}
    wanted = [name for names in named.values() for name in names]
    if missing := [name for name in wanted if name not in checkpoints]:
        raise FileNotFoundError(f"the parameters of trra name checkpoints that are not there: {', '.join(missing)}. "
                                "Train them: kedro run --pipeline trra, or dvc repro")  # fmt: skip
    if left := sorted(checkpoints.keys() - set(wanted)):
        logger.warning(
            "not measured, as the parameters of trra do not name them: %s. Remove their folders from trra_checkpoints: "
            "DVC counts them among what alpha_sweep reads.",
            ", ".join(left),
        )
    return [
        Candidate(Path(name).name, "trra_iter" if iteration else "trra", float(alpha), (checkpoints[name],))
        for alpha, names in named.items()
        for iteration, name in enumerate(names)
    ]


def summarise(parameters: AlphaSweep, generations: dict[str, Any]) -> Any:
    """Each candidate's figures for each task and over all tasks, with bootstrap intervals (a DataFrame)."""
    from realign_pipes.evaluation.metrics import summarise_sweep

    return summarise_sweep(
        generations, bootstrap_samples=parameters.bootstrap_samples, bootstrap_seed=parameters.bootstrap_seed
    )
