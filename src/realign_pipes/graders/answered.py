"""What graders read: a completion's answer, without its thinking, beside its problem."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from datasets import Dataset

from realign_pipes.errors import InputError
from realign_pipes.tasks.chats import Chat
from realign_pipes.tasks.completion import ThinkingTags, answer_part


@dataclass(frozen=True)
class Answered:
    """A completion, to be graded."""

    task: str
    problem_id: str
    sample: int
    question: str
    metadata: Mapping[str, Any]
    completion: str
    """With its thinking."""
    answer: str
    """What follows the thinking; empty for a completion that ended inside it."""
    messages: Chat
    """The chat up to the turn that was to be answered; `question` is its text."""


def read_answered(frame: pd.DataFrame, problems: Dataset) -> list[Answered]:
    """A candidate's completions (columns GENERATIONS) with their problems (EVALUATION_COLUMNS), in the frame's order.

    InputError for a completion of a problem that is not in the evaluation set.
    """
    by_id = {row["id"]: row for row in problems}
    answered = []
    for row in frame[["task", "problem_id", "sample", "completion"]].itertuples(index=False):
        if row.problem_id not in by_id:
            raise InputError(f"generations hold problem {row.problem_id}, which evaluation_set lacks: they come from "
                             "different runs. Run alpha_sweep again.")  # fmt: skip
        problem = by_id[row.problem_id]
        tags = ThinkingTags(open=problem["think_open"], close=problem["think_close"])
        answer = answer_part(problem["prompt"], row.completion, tags) or ""
        metadata = json.loads(problem["metadata"])
        answered.append(
            Answered(row.task, row.problem_id, row.sample, problem["question"], metadata, row.completion, answer,
                     problem["messages"])
        )  # fmt: skip
    return answered
