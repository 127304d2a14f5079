"""The evaluation set: problems that every candidate is measured on, none of which the calibration has seen."""

from pathlib import Path

from datasets import Dataset, Features, List, Value

from realign_pipes.data_prep.problems import draw_problems, normalise
from realign_pipes.data_prep.prompts import render_prompt
from realign_pipes.parameters import DataPrep
from realign_pipes.realignment.checkpoints import load_tokenizer

EVALUATION_COLUMNS = Features(
    {
        "id": Value("string"),
        "task": Value("string"),
        "question": Value("string"),
        "answer": Value("string"),
        "metadata": Value("string"),  # JSON: what the verifier needs
        "prompt": Value("string"),  # through the chat template
        "prompt_ids": List(Value("int32")),
        "prompt_tokens": Value("int32"),
        "in_calibration": Value("bool"),
    }
)


def make_evaluation_set(parameters: DataPrep, reference: Path, calibration_samples: Dataset) -> Dataset:
    """The problems of all tasks with EVALUATION_COLUMNS.

    Problems of which any completion was collected for the calibration are left out and others drawn in their place,
    also where no completion came into the calibration set: preference pairs may be made from the others.
    """
    tokenizer = load_tokenizer(reference)
    excluded = {normalise(question) for question in calibration_samples.unique("question")}
    rows = []
    for name, task in parameters.tasks.items():
        for problem in draw_problems(f"data_prep.tasks.{name}", name, task, parameters.seed, excluded):
            prompt, prompt_ids = render_prompt(tokenizer, problem.question)
            rows.append({**vars(problem), "prompt": prompt, "prompt_ids": prompt_ids, "prompt_tokens": len(prompt_ids)})
    for row in rows:  # a look at what was drawn, for the expectation suite to check
        row["in_calibration"] = normalise(row["question"]) in excluded
    return Dataset.from_list(rows, features=EVALUATION_COLUMNS)
