"""The evaluation set: problems that every candidate is measured on, none of which the calibration has seen."""

from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset

from realign_pipes.data.problems import draw_problems, normalise
from realign_pipes.data.prompts import render_prompt
from realign_pipes.data.schemas import EVALUATION_COLUMNS
from realign_pipes.models.load import load_tokenizer
from realign_pipes.tasks.parameters import Problems


def make_evaluation_set(
    tasks: Mapping[str, Problems], reference: Path, calibration_samples: Dataset, *, seed: int
) -> Dataset:
    """The problems of all tasks with EVALUATION_COLUMNS.

    Problems of which any completion was collected for the calibration are left out and others drawn in their place,
    also where no completion came into the calibration set: preference pairs may be made from the others.
    """
    tokenizer = load_tokenizer(reference)
    excluded = {normalise(question) for question in calibration_samples.unique("question")}
    rows = []
    for name, task in tasks.items():
        for problem in draw_problems(f"data_prep.tasks.{name}", name, task, seed, excluded):
            prompt, prompt_ids = render_prompt(tokenizer, problem.question)
            rows.append({**vars(problem), "prompt": prompt, "prompt_ids": prompt_ids, "prompt_tokens": len(prompt_ids)})
    for row in rows:  # a look at what was drawn, for the expectation suite to check
        row["in_calibration"] = normalise(row["question"]) in excluded
    return Dataset.from_list(rows, features=EVALUATION_COLUMNS)
