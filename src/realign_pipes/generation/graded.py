"""Sampling and grading: the demo, data_prep and the sweep all draw their completions here."""

import json
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from realign_pipes.errors import InputError
from realign_pipes.generation.closing import make_closing
from realign_pipes.generation.engine import Alpha, Completion, Engine, Prompt
from realign_pipes.generation.parameters import Sampling
from realign_pipes.runtime.files import append_line, whole_lines
from realign_pipes.runtime.progress import progress_bar
from realign_pipes.tasks.completion import THINK, ThinkingTags
from realign_pipes.tasks.grading import Attempt, grade
from realign_pipes.tasks.parameters import Task


@dataclass(frozen=True)
class Question:
    """A problem as the model gets it, and what is needed to grade its completions."""

    id: str
    task: Task
    prompt: str
    """The text of `prompt_ids`."""
    prompt_ids: list[int]
    answer: str | None
    """None where the task has no answers."""
    metadata: str
    """JSON text: what the task's verifier needs."""
    tags: ThinkingTags = THINK


@dataclass(frozen=True)
class GradedCompletion:
    """A completion of a question, and whether it is right."""

    id: str
    """The question's."""
    sample: int
    token_ids: list[int]
    """With the token that ended it, if one did."""
    finished: bool
    """False if the token limit cut it off."""
    correct: bool | None
    """None where the task has no answers."""


def check_length(
    prompt_ids: Iterable[Sequence[int]], max_new_tokens: int, max_positions: int | None, *, parameter: str, model: str
) -> None:
    """Raise InputError unless the longest prompt and `max_new_tokens` fit into the positions of a model (None: any).

    `parameter` is where a user finds `max_new_tokens`, `model` names the checkpoint.
    """
    longest = max(map(len, prompt_ids))
    if max_positions is not None and longest + max_new_tokens > max_positions:
        raise InputError(
            f"{parameter} is {max_new_tokens} and the longest prompt has {longest} tokens. Together they are "
            f"{longest + max_new_tokens} tokens, but max_position_embeddings of {model} is {max_positions}. Set "
            f"{parameter} to {max(max_positions - longest, 0)} or less, or choose shorter problems."
        )


def sample_and_grade(
    open_engine: Callable[[], Engine],
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerFast,
    sampling: Sampling,
    file: Path,
    *,
    description: str,
    alpha: Alpha | None = None,
    close_at: int | None = None,
    close_bias: float = 0.0,
) -> Generator[GradedCompletion, None, None]:
    """Yield `sampling.samples` graded completions of each question: first those in `file`, then new ones as drawn.

    `file` (JSON lines) keeps what is drawn, one group of the engine a line, so that an interrupted run resumes after
    its last whole group. Put it in a work folder that is valid for exactly these questions, model and sampling.
    `open_engine` is called only if a completion is missing. `description` is the progress bar's. `close_at` and
    `close_bias` are the `at` and `bias` of each prompt's `Closing`.
    """
    by_id = {question.id: question for question in questions}
    found = read_graded(file)
    with progress_bar(description, len(questions) * sampling.samples) as advance:
        advance(len(found))
        yield from found
        if len(found) == len(questions) * sampling.samples:
            return
        engine = open_engine()
        prompts = [
            Prompt(
                question.id,
                question.prompt_ids,
                alpha,
                make_closing(tokenizer, question.tags, question.prompt, at=close_at, bias=close_bias)
                if close_at is not None or close_bias
                else None,
            )
            for question in questions
        ]
        start = time.perf_counter()
        with closing(engine.draw(prompts, sampling, done={(one.id, one.sample) for one in found})) as groups:
            for group in groups:
                attempts = [_attempt(by_id[one.key], one, tokenizer) for one in group]
                graded = [
                    GradedCompletion(one.key, one.sample, one.token_ids, one.finished, correct)
                    for one, correct in zip(group, grade(attempts), strict=True)
                ]
                line = {"seconds": time.perf_counter() - start, "completions": [asdict(one) for one in graded]}
                append_line(file, json.dumps(line))
                advance(len(graded))
                yield from graded
                start = time.perf_counter()  # don't count the caller's time


def read_graded(file: Path) -> list[GradedCompletion]:
    """What `sample_and_grade` has kept in `file`; nothing if there is no such file.

    An incomplete last line is removed from the file.
    """
    return [GradedCompletion(**one) for line in _whole_lines(file) for one in line["completions"]]


def seconds_taken(file: Path) -> float:
    """How long it took to draw and grade what is in `file`, summed over runs; opening engines does not count."""
    return sum(float(line["seconds"]) for line in _whole_lines(file))


def completion_text(tokenizer: PreTrainedTokenizerFast, token_ids: list[int], finished: bool) -> str:
    """The text of a completion: with its tags, without the token that ended it."""
    text: str = tokenizer.decode(token_ids[:-1] if finished else token_ids, clean_up_tokenization_spaces=False)
    return text


def _attempt(question: Question, completion: Completion, tokenizer: PreTrainedTokenizerFast) -> Attempt:
    text = completion_text(tokenizer, completion.token_ids, completion.finished)
    return Attempt(question.id, question.task, question.prompt, text, question.answer, question.metadata, question.tags)


def _whole_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in whole_lines(file)]
