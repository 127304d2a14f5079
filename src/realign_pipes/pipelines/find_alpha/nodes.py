"""Stage find_alpha: the alpha that fulfils a wish, and the student there."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realign_pipes.data.parameters import Models
from realign_pipes.errors import InputError
from realign_pipes.generation.parameters import Generation
from realign_pipes.pipelines.data_prep.parameters import DataPrep
from realign_pipes.pipelines.find_alpha.parameters import FindAlpha
from realign_pipes.pipelines.inra.parameters import InRa
from realign_pipes.pipelines.trra.parameters import TrRa
from realign_pipes.runtime.launch import Folders, Launcher, launch
from realign_pipes.runtime.tracking import Tracking
from realign_pipes.sweep.parameters import AlphaSweep
from realign_pipes.teachers.parameters import Teachers

if TYPE_CHECKING:
    from datasets import Dataset
    from plotly.graph_objects import Figure
else:  # Kedro evaluates these annotations when a run starts; the imports would slow it down
    Dataset = Figure = Any

logger = logging.getLogger(__name__)


def draw_problems(
    parameters: FindAlpha, data_prep: DataPrep, models: Models, reference_model: Path, calibration_samples: Dataset
) -> tuple[Dataset, Dataset]:
    """Fresh problems of the evaluation's tasks, to search on and to confirm with. InputError if the run has no wish,
    or one about pass@1 where no task has answers."""
    from realign_pipes.data.prompts import thinking_tags
    from realign_pipes.data.search_sets import make_search_sets
    from realign_pipes.models.load import load_chat_tokenizer
    from realign_pipes.sweep.search import LoseAtMost
    from realign_pipes.tasks.grading import has_answers

    if isinstance(parameters.wish(), LoseAtMost) and not any(map(has_answers, data_prep.tasks.values())):
        raise InputError("find_alpha.lose_at_most is about pass@1, and no task of data_prep.tasks has answers. Wish "
                         "with find_alpha.save instead.")  # fmt: skip
    tokenizer = load_chat_tokenizer(reference_model, models.chat_template)
    return make_search_sets(
        data_prep.tasks,
        tokenizer,
        models.thinking or thinking_tags(tokenizer),
        calibration_samples,
        search=parameters.search.share,
        confirm=parameters.confirm.share,
        seed=parameters.seed,
        instruction=data_prep.instruction,
    )


def search_alpha(
    parameters: FindAlpha,
    alpha_sweep: AlphaSweep,
    data_prep: DataPrep,
    trra: TrRa,
    inra: InRa,
    teachers: Teachers,
    models: Models,
    generation: Generation,
    launcher: Launcher,
    folders: Folders,
    tracking: Tracking,
    reference_model: Path,
    aligned_model: Path,
    inra_checkpoint: Path,
    calibration_set: Dataset,
    teacher_cache: Path,
    search_problems: Dataset,
    confirming_problems: Dataset,
    evaluation_set: Dataset,
) -> tuple[dict[str, Any], Path, Figure]:
    """What was found and what it cost, the student's checkpoint, and a picture of the search.

    InputError for vLLM and several processes: the training would need them, and drawing cannot use them.
    """
    from realign_pipes.datasets.arrow import folder_of
    from realign_pipes.pipelines.alpha_sweep.job import MeasureCandidates
    from realign_pipes.pipelines.find_alpha.job import Found, SearchAlpha
    from realign_pipes.reporting.search import search_figure, summarise_search

    if generation.engine == "vllm" and launcher.num_processes > 1:
        raise InputError(
            f"find_alpha draws with vLLM in one process only, as its students are trained between: "
            f"launcher.num_processes is {launcher.num_processes}. Set it to 1, or generation.engine to transformers."
        )
    job = SearchAlpha(
        parameters=parameters,
        generation=generation,
        alpha_sweep=alpha_sweep,
        trra=trra,
        teachers=teachers,
        tasks=data_prep.tasks,
        reference=reference_model,
        aligned=aligned_model,
        inra_checkpoint=inra_checkpoint,
        examples=folder_of(calibration_set),
        teacher_cache=teacher_cache,
        search_problems=folder_of(search_problems),
        confirming_problems=folder_of(confirming_problems),
        chat_template=models.chat_template,
        attn_implementation=models.attn_implementation,
        work=folders.work / "find_alpha",
        students=folders.work / "trra",
        tracking=tracking,
    )
    found = launch(job, Found, launcher, folders.work / "launch" / "find_alpha", training=trra)
    # Only to count what the stage alpha_sweep draws: any checkpoint stands in for those that it measures.
    grid = MeasureCandidates(
        parameters=alpha_sweep,
        generation=generation,
        tasks=data_prep.tasks,
        trra=trra,
        inra_plausibility=inra.plausibility,
        reference=reference_model,
        aligned=aligned_model,
        trra_checkpoints=dict.fromkeys(trra.all_students(), found.checkpoint),
        inra_checkpoint=inra_checkpoint,
        problems=folder_of(evaluation_set),
        work=folders.work / "alpha_sweep",
        others=dict.fromkeys(alpha_sweep.others, found.checkpoint),
    )
    summary = summarise_search(
        parameters.wish(),
        found.knob,
        found.steps,
        found.confirmed,
        problems=len(confirming_problems),
        completions_drawn=found.completions_drawn,
        sweep_completions=grid.completions(),
    )
    logger.info("%s", summary["sentence"])
    return summary, found.checkpoint, search_figure(summary)
