"""Two sets of fresh problems: those on which an alpha is searched, and those on which it is confirmed."""

from collections.abc import Mapping

from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from realign_pipes.data.evaluation_set import make_evaluation_set
from realign_pipes.data.problems import draw_problems, normalise
from realign_pipes.errors import InputError
from realign_pipes.tasks.completion import ThinkingTags
from realign_pipes.tasks.parameters import DatasetTask, Problems


def make_search_sets(
    tasks: Mapping[str, Problems],
    tokenizer: PreTrainedTokenizerFast,
    tags: ThinkingTags,
    calibration_samples: Dataset,
    *,
    search: float,
    confirm: float,
    seed: int,
    instruction: str | None = None,
) -> tuple[Dataset, Dataset]:
    """Problems of each task, with EVALUATION_COLUMNS; all distinct, none of the calibration's.

    `search` and `confirm` are the sizes of the two sets as shares of the sweep's problems of each task. Problems of
    reasoning-gym are made anew from the seed. Of a dataset, at most half of what there is goes into the first set, and
    at most the rest into the second. InputError where there are too few problems.
    """
    calibrated = {normalise(question) for question in calibration_samples.unique("question")}
    sizes = {}
    for name, task in tasks.items():
        if not isinstance(task, DatasetTask):
            wanted = task.problems
        else:
            every = task.model_copy(update={"problems": None})
            there = len(draw_problems(f"data_prep.tasks.{name}", name, every, seed, calibrated))
            if there < 2:
                raise InputError(f"data_prep.tasks.{name}: to search an alpha and to confirm it, two problems are "
                                 f"needed that are not the calibration's, and there is {there}.")  # fmt: skip
            wanted = task.problems or there
        first, second = (max(1, round(share * wanted)) for share in (search, confirm))
        if isinstance(task, DatasetTask):
            first = min(first, there // 2)
            second = min(second, there - first)
        sizes[name] = (first, second)
    sets: list[Dataset] = []
    for number, key in enumerate(("find_alpha.search", "find_alpha.confirm")):
        sized = {name: task.model_copy(update={"problems": sizes[name][number]}) for name, task in tasks.items()}
        taken = [normalise(question) for one in sets for question in one["question"]]
        sets.append(
            make_evaluation_set(
                sized,
                tokenizer,
                tags,
                calibration_samples,
                seed=seed,
                key=key,
                excluded=taken,
                instruction=instruction,
            )
        )
    first_set, second_set = sets
    return first_set, second_set
