"""The evaluation set: problems that every candidate is measured on, none of which the calibration has seen."""

from collections.abc import Collection, Mapping

from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from realign_pipes.data.problems import draw_problems, normalise
from realign_pipes.data.prompts import render_prompt
from realign_pipes.data.schemas import EVALUATION_COLUMNS
from realign_pipes.tasks.completion import ThinkingTags
from realign_pipes.tasks.parameters import Problems


def make_evaluation_set(
    tasks: Mapping[str, Problems],
    tokenizer: PreTrainedTokenizerFast,
    tags: ThinkingTags,
    calibration_samples: Dataset,
    *,
    seed: int,
    key: str = "data_prep.tasks",
    excluded: Collection[str] = (),
    instruction: str | None = None,
) -> Dataset:
    """The problems of all tasks with EVALUATION_COLUMNS. `key` is the parameter that messages name, `instruction`
    what is added to the end of each question.

    A problem that has any completion in `calibration_samples` is replaced by another one, even if none of them is in
    the calibration set: preference pairs may be made from them. So is one
    that is among `excluded` (normalised questions). Different keys draw different problems from one seed.
    """
    calibrated = {normalise(question) for question in calibration_samples.unique("question")}
    rows = []
    for name, task in tasks.items():
        for problem in draw_problems(f"{key}.{name}", name, task, seed, {*calibrated, *excluded}):
            prompt, prompt_ids = render_prompt(tokenizer, problem.chat, instruction)
            rows.append(
                {
                    **vars(problem),
                    "messages": problem.chat,
                    "prompt": prompt,
                    "think_open": tags.open,
                    "think_close": tags.close,
                    "prompt_ids": prompt_ids,
                    "prompt_tokens": len(prompt_ids),
                    # Looked up again, independently of the drawing: the expectation suite checks it.
                    "in_calibration": normalise(problem.question) in calibrated,
                }
            )
    return Dataset.from_list(rows, features=EVALUATION_COLUMNS)
