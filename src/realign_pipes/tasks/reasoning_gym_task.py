"""Problems and verifiers from reasoning-gym: any of its procedural datasets, made offline from a seed."""

import functools
import json
import logging
from typing import TYPE_CHECKING

from realign_pipes.errors import InputError
from realign_pipes.tasks.parameters import ReasoningGymTask

if TYPE_CHECKING:
    from reasoning_gym.dataset import ProceduralDataset

logger = logging.getLogger(__name__)


def make_problems(task: ReasoningGymTask, size: int, seed: int) -> list[dict[str, str]]:
    """`size` problems, each with `question`, `answer` and `metadata` (JSON text: what the verifier needs).

    Most of its datasets make problem i of seed s as problem 0 of seed s + i, so neighbouring seeds share problems.
    InputError if reasoning-gym has no such dataset or refuses its options, and if the dataset's verifier would count
    its own answers as wrong, such as one that looks for a tuple in the metadata and finds a list.
    """
    dataset = _create(task.dataset, json.dumps({**task.options, "size": size, "seed": seed}))
    problems = []
    for entry in dataset:
        answer, metadata = str(entry["answer"]), json.dumps(entry["metadata"], default=str)
        right = dataset.score_answer(entry["answer"], entry) >= 1.0  # some datasets give no answer
        if right and not verify(task, f"<answer>{answer}</answer>", answer, metadata):
            raise InputError(f"reasoning-gym's verifier of {task.dataset} counts the dataset's own answers as wrong "
                             "once the problems have been saved. Choose another dataset.")  # fmt: skip
        problems.append({"question": entry["question"], "answer": answer, "metadata": metadata})
    return problems


def verify(task: ReasoningGymTask, answered: str, answer: str, metadata: str) -> bool:
    """Whether the last `<answer>…</answer>` of the text after the thinking earns the dataset's full score."""
    from reasoning_gym.utils import extract_answer

    given = extract_answer(answered)
    if given is None:
        return False
    dataset = _create(task.dataset, json.dumps(task.options))  # some verifiers look at the options
    try:
        return dataset.score_answer(given, {"answer": answer, "metadata": json.loads(metadata)}) >= 1.0
    except (
        Exception
    ) as error:  # some verifiers raise on text that they cannot read: that is a wrong answer, not a reason to stop
        logger.debug("%s could not read the answer %r: %r", task.dataset, given, error)
        return False


@functools.lru_cache(maxsize=16)
def _create(name: str, options: str) -> "ProceduralDataset":
    """The dataset; `options` as JSON text, so that a verifier is built once and not for every completion."""
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(name, **json.loads(options))
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(f"reasoning-gym's dataset {name} cannot be made with {options}: {error}") from error
