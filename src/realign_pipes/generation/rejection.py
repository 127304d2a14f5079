"""Rejection sampling: what a model learns from that is to think less, and how it learns to answer at any time."""

import random
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from realign_pipes.generation.engine import Engine
from realign_pipes.generation.graded import GradedCompletion, Question, sample_and_grade
from realign_pipes.generation.parameters import Sampling


def shortest_completions(
    open_engine: Callable[[], Engine],
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerFast,
    sampling: Sampling,
    file: Path,
    *,
    verified: Collection[str],
) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion ids of each question's shortest completion; of those verified, the shortest correct one.

    `verified` are ids of questions. Those of them that the model cannot answer are left out, and so are questions
    without a finished completion. `open_engine` opens the reference; `file` keeps the completions, as
    `sample_and_grade` does.
    """
    best: dict[str, GradedCompletion] = {}
    for one in sample_and_grade(
        open_engine, questions, tokenizer, sampling, file, description="sampling the reference model"
    ):
        kept = one.finished and (one.correct or one.id not in verified)
        if kept and (one.id not in best or len(one.token_ids) < len(best[one.id].token_ids)):
            best[one.id] = one
    return [(question.prompt_ids, best[question.id].token_ids) for question in questions if question.id in best]


def cut_thinking(
    prompt: list[int], completion: list[int], think_close: int, rng: random.Random
) -> tuple[list[int], list[int]]:
    """The example with its thinking in the prompt, cut short and closed, and the solution alone to be learnt.

    Half of the examples keep no thinking at all, the others keep it up to a random token. So the model can answer after
    any amount of thinking, as models with hybrid thinking can. A model that only ever saw finished thinking would copy
    the solution from it and could not answer without it. The model does not learn here when to stop thinking: the
    closing tag is in the prompt.
    """
    closed = completion.index(think_close)
    kept = rng.choice([0, rng.randint(0, closed)])
    return prompt + completion[:kept] + [think_close], completion[closed + 1 :]
