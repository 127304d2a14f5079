"""Grading: completions, their problems and tasks go in, right or wrong comes out.

Verifiers read what a model wrote, which can keep them busy forever (`9^{9^{9^9}}`), use up all memory, or crash the
process. So they run in a worker process with limits, which is killed and replaced. math-verify could stop itself, with
a signal that only a main thread gets; reasoning-gym's verifiers could not.
"""

import functools
import logging
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from realign_pipes.tasks import dataset_task, reasoning_gym_task
from realign_pipes.tasks.completion import THINK, ThinkingTags, answer_part
from realign_pipes.tasks.parameters import DatasetTask, Task

if TYPE_CHECKING:  # not in the core: whoever draws completions without grading them does without
    from pebble import ProcessPool

logger = logging.getLogger(__name__)

TIME_LIMIT = 10
"""Seconds that a verifier may take over one completion."""
MEMORY_LIMIT = 2 * 2**30
"""Bytes that a verifier may use beyond what its process has at the start."""


@dataclass(frozen=True)
class Attempt:
    """A completion of a problem, to be graded."""

    problem_id: str
    task: Task
    prompt: str
    completion: str
    answer: str | None
    """None where the task has no answers."""
    metadata: str
    """JSON text: what the task's verifier needs."""
    tags: ThinkingTags = THINK


def has_answers(task: Task) -> bool:
    """Whether completions of a task are graded."""
    return not (isinstance(task, DatasetTask) and task.verifier == "none")


class OfProblem(Protocol):
    """What is read of a completion to name it in a warning."""

    @property
    def problem_id(self) -> str: ...


Item = TypeVar("Item", bound=OfProblem)
Grade = TypeVar("Grade")


def grade(attempts: Sequence[Attempt]) -> Iterator[bool | None]:
    """Whether each completion answers its problem, in order; None where the task has no answers.

    Nothing that a model wrote is ever executed.

    If the verifier exceeds its time or memory, the completion counts as wrong, with a warning that names the problem.
    """
    graded = run_limited(_is_correct, [attempt for attempt in attempts if has_answers(attempt.task)], False)
    for attempt in attempts:
        yield next(graded) if has_answers(attempt.task) else None


def run_limited(function: Callable[[Item], Grade], items: Sequence[Item], wrong: Grade) -> Iterator[Grade]:
    """`function` of each completion, in order, in the worker process: for whatever reads what a model wrote.

    Function and items are pickled. If one exceeds its time or memory, it is `wrong`, with a warning that names the
    problem.
    """
    from pebble import ProcessExpired

    futures = [_worker().schedule(_alarmed, args=[function, item, TIME_LIMIT], timeout=TIME_LIMIT) for item in items]
    for item, future in zip(items, futures, strict=True):
        try:
            yield future.result()
        except TimeoutError:
            logger.warning("%s: counted as wrong, as grading it took more than %d s", item.problem_id, TIME_LIMIT)
            yield wrong
        except (ProcessExpired, MemoryError) as error:
            logger.warning("%s: counted as wrong, as grading it failed: %r", item.problem_id, error)
            yield wrong


def is_correct(
    task: Task, prompt: str, completion: str, answer: str | None, metadata: str, tags: ThinkingTags = THINK
) -> bool:
    """Whether `completion` answers the problem; `grade` does the same within limits.

    ValueError for a task without answers.
    """
    if answer is None:
        raise ValueError("there is no answer to compare with")
    answered = answer_part(prompt, completion, tags)
    if answered is None:
        return False
    if isinstance(task, DatasetTask):
        return dataset_task.verify(task.verifier, answered, answer)
    return reasoning_gym_task.verify(task, answered, answer, metadata)


def looked_for(task: Task, answer: str | None) -> str:
    """What the task's verifier looks for in the text after the thinking, for a message."""
    if not isinstance(task, DatasetTask):
        return f"<answer>{answer}</answer>"
    return f"\\boxed{{{answer}}}" if task.verifier == "math" else f"{answer!r} and nothing else"


@functools.cache
def _worker() -> "ProcessPool":
    """The worker process, started by the first call (a second of imports) and again after it was killed."""
    from pebble import ProcessPool

    return ProcessPool(max_workers=1, initializer=_start_worker, context=multiprocessing.get_context("spawn"))


os.register_at_fork(after_in_child=_worker.cache_clear)  # the worker is the parent's


def _start_worker() -> None:
    import math_verify  # noqa: F401  so that its memory is not counted
    import reasoning_gym  # noqa: F401  the same

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time-outs are off
    if sys.platform == "linux":  # macOS has no such limit
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = used + MEMORY_LIMIT
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _is_correct(attempt: Attempt) -> bool:
    return is_correct(attempt.task, attempt.prompt, attempt.completion, attempt.answer, attempt.metadata, attempt.tags)


def _alarmed(function: Callable[[Item], Grade], item: Item, time_limit: int) -> Grade:
    # If the parent was killed, nothing else ends a hanging worker: an alarm without a handler does, even in C code.
    signal.alarm(2 * time_limit)
    try:
        return function(item)
    finally:
        signal.alarm(0)
