"""Drawing distinct problems from a task, none of which is in another set."""

import random
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from realign_pipes.errors import InputError
from realign_pipes.tasks import dataset_task, reasoning_gym_task
from realign_pipes.tasks.chats import Chat, user_turn
from realign_pipes.tasks.parameters import DatasetTask, Problems

DRAW_FACTORS = (2, 8, 32)
"""Problems generated for each one wanted; more only if too few are left without duplicates and excluded ones."""


@dataclass(frozen=True)
class Problem:
    id: str
    task: str
    question: str
    """Its text; of a chat, the text of all of it."""
    answer: str | None
    """None where the task has no answers."""
    metadata: str
    """JSON text: what the task's verifier needs."""
    messages: Chat | None = None
    """Of a chat: up to the turn that is to be answered."""

    @property
    def chat(self) -> Chat:
        """The messages, or the question as the user's turn."""
        return self.messages or user_turn(self.question)


def normalise(question: str) -> str:
    """The form in which questions are compared: one Unicode form, one case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", question).casefold().split())


def draw_problems(key: str, name: str, task: Problems, seed: int, excluded: Collection[str] = ()) -> list[Problem]:
    """Distinct problems of `task`, none of which is among `excluded` (normalised questions).

    `key` is the parameter that holds the task. Different keys draw different problems from one seed. InputError,
    naming `key`, where there are fewer problems than the task asks for.
    """
    draws = random.Random(f"{seed}/{key}")
    wanted = task.problems
    if isinstance(task, DatasetTask):
        candidates = dataset_task.make_problems(task, key)
        if wanted is not None:
            draws.shuffle(candidates)
        chosen = _distinct(candidates, excluded)
    else:
        first = draws.getrandbits(31)
        for factor in DRAW_FACTORS:
            try:
                candidates = reasoning_gym_task.make_problems(task, factor * task.problems, seed=first)
            except ValueError as error:
                raise InputError(f"{key}: {error}") from error
            chosen = _distinct(candidates, excluded)
            if len(chosen) >= task.problems:
                break
    if len(chosen) < (wanted or 1):
        raise InputError(f"{key}: {wanted or 1} distinct problems are wanted, and only {len(chosen)} are left of "
                         f"{len(candidates)} without duplicates and problems of the calibration. Ask for fewer, or "
                         "give the task more of them.")  # fmt: skip
    return [Problem(f"{name}-{index:05d}", name, **problem) for index, problem in enumerate(chosen[:wanted])]


def _distinct(problems: Iterable[dict[str, Any]], excluded: Collection[str]) -> list[dict[str, Any]]:
    """The first problem of each normalised question that is not excluded."""
    seen = set(excluded)
    chosen = []
    for problem in problems:
        question = normalise(problem["question"])
        if question not in seen:
            seen.add(question)
            chosen.append(problem)
    return chosen
