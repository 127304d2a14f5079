"""The demo's sums as problems of lm-evaluation-harness: conf/base/tax_tasks names `make_sums` as their data."""

import random
from typing import Any

from datasets import Dataset, DatasetDict

from realign_pipes.tasks.parameters import ReasoningGymTask
from realign_pipes.tasks.reasoning_gym_task import make_problems

CHOICES = 4


def make_sums(problems: int, terms: int, seed: int, **metadata: Any) -> DatasetDict:
    """A split `test` of distinct sums of `terms` one-digit numbers: `question`, `answer`, `choices`, `label`.

    The choices are the sum and numbers that are at most 3 away from it, in random order; `label` is the sum's place.
    The harness hands over `metadata`, which is not used.
    """
    options = {"min_terms": terms, "max_terms": terms, "min_digits": 1, "max_digits": 1}
    task = ReasoningGymTask(kind="reasoning_gym", dataset="chain_sum", options=options)
    drawn = {problem["question"]: problem["answer"] for problem in make_problems(task, 2 * problems, seed)}
    rng = random.Random(seed)
    rows = []
    for question, answer in list(drawn.items())[:problems]:
        wrong = rng.sample([step for step in range(-3, 4) if step], CHOICES - 1)
        choices = [str(int(answer) + step) for step in (0, *wrong)]
        rng.shuffle(choices)
        rows.append({"question": question, "answer": answer, "choices": choices, "label": choices.index(answer)})
    return DatasetDict({"test": Dataset.from_list(rows)})
