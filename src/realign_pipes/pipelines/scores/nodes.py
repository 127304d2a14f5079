"""Nodes of the stage scores; `realign_pipes.graders` has the graders."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from realign_pipes.pipelines.scores.parameters import Scores
from realign_pipes.runtime.launch import Folders
from realign_pipes.sweep.parameters import AlphaSweep

if TYPE_CHECKING:
    from pandas import DataFrame
else:  # Kedro resolves every node's hints when a run starts, and the real imports would slow it down
    DataFrame = Any


def score(
    parameters: Scores,
    alpha_sweep: AlphaSweep,
    folders: Folders,
    generations: dict[str, DataFrame | Callable[[], DataFrame]],
    evaluation_set: Any,
) -> tuple[DataFrame, DataFrame, DataFrame, DataFrame]:
    """Each completion's scores, each candidate's figures of each metric, the judges' verdicts, and what they say."""
    from realign_pipes.graders.metrics import metrics_of
    from realign_pipes.graders.scoring import score_sweep
    from realign_pipes.sweep.metrics import read_answers
    from realign_pipes.sweep.scores import summarise_scores

    answers = read_answers(generations)
    scored = score_sweep(parameters, generations, answers, evaluation_set, folders.work / "scores")
    scores, verdicts, judges = scored.frames()
    results = summarise_scores(
        answers,
        scores,
        metrics_of(parameters),
        bootstrap_samples=alpha_sweep.bootstrap_samples,
        bootstrap_seed=alpha_sweep.bootstrap_seed,
    )
    return scores, results, verdicts, judges
