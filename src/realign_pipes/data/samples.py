"""Graded completions of calibration problems: drawn from the reference model, or read from a dataset."""

import logging
import random
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from realign_pipes.data.calibration import is_usable, shortened, usable_rows
from realign_pipes.data.problems import Problem, draw_problems, normalise
from realign_pipes.data.prompts import continue_prompt, encode_completion, end_of_turn_id, render_prompt
from realign_pipes.data.schemas import SAMPLE_COLUMNS
from realign_pipes.errors import InputError
from realign_pipes.generation.engine import Description, Engine
from realign_pipes.generation.graded import Question, check_length, completion_text, sample_and_grade
from realign_pipes.generation.parameters import Sampling
from realign_pipes.models.fingerprint import fingerprint, fingerprint_model, fingerprint_tokenizer
from realign_pipes.models.load import max_positions, read_stops
from realign_pipes.runtime.progress import progress_bar
from realign_pipes.runtime.work import open_work
from realign_pipes.tasks.completion import ThinkingTags
from realign_pipes.tasks.dataset_task import read_rows
from realign_pipes.tasks.grading import Attempt, grade, looked_for
from realign_pipes.tasks.parameters import DatasetSource, DatasetTask, Problems, Task, Verifier

logger = logging.getLogger(__name__)

KEY = "data_prep.calibration"
"""The parameter that messages name."""
NAME = "calibration"
ENOUGH = 32
"""If this many problems have no usable completion, no more are drawn: something is wrong."""


def draw_samples(
    open_engine: Callable[[], Engine],
    task: Problems,
    sampling: Sampling,
    tokenizer: PreTrainedTokenizerFast,
    tags: ThinkingTags,
    *,
    reference: Path,
    seed: int,
    drawn_by: Description,
    work: Path,
    instruction: str | None = None,
) -> Dataset:
    """Completions that the reference draws, `sampling.samples` of each problem, with SAMPLE_COLUMNS.

    `instruction` is added to the end of each question. `open_engine` opens the reference, after the problems and the
    length of their prompts were checked; `drawn_by` says what it will be. It is closed in the end. Sampling that was
    interrupted resumes in `work`.

    InputError if no completion is usable, as soon as ENOUGH problems are answered.
    """
    problems = {problem.id: problem for problem in draw_problems(f"{KEY}.task", NAME, task, seed)}
    questions = {name: _question(problem, task, tokenizer, tags, instruction) for name, problem in problems.items()}
    check_length(
        [question.prompt_ids for question in questions.values()],
        sampling.max_new_tokens,
        max_positions(reference),
        parameter=f"{KEY}.sampling.max_new_tokens",
        model=str(reference),
    )
    description = {
        "what": "calibration samples",
        "reference": fingerprint_model(reference),
        "tokenizer": fingerprint_tokenizer(tokenizer),
        "stops": read_stops(reference),
        "task": task.model_dump(),
        "tags": tags.model_dump(),
        "questions": fingerprint([(one.id, one.prompt_ids, one.answer, one.metadata) for one in questions.values()]),
        "sampling": sampling.model_dump(),
        "engine": asdict(drawn_by),
    }
    opened = ExitStack()
    drawn = sample_and_grade(
        lambda: opened.enter_context(closing(open_engine())),
        list(questions.values()),
        tokenizer,
        sampling,
        open_work(work, description) / "completions.jsonl",
        description="sampling the reference model",
    )
    rows: list[dict[str, Any]] = []
    answered, usable = set(), 0
    with opened, closing(drawn):
        for one in drawn:
            text = completion_text(tokenizer, one.token_ids, one.finished)
            row = _row(problems[one.id], questions[one.id], one.sample, text, one.token_ids)
            rows.append({**row, "finished": one.finished, "correct": one.correct, "source": "sampled"})
            answered.add(one.id)
            usable += is_usable(one.correct, one.finished, text, tags.close)
            if not usable and len(answered) > ENOUGH:
                break
    return _dataset(rows, task, tags)


def read_samples(
    source: DatasetSource,
    *,
    question_column: str,
    completion_column: str,
    answer_column: str,
    verifier: Verifier,
    limit: int | None,
    tokenizer: PreTrainedTokenizerFast,
    tags: ThinkingTags,
    seed: int,
    instruction: str | None = None,
) -> Dataset:
    """The completions in a dataset, graded, with SAMPLE_COLUMNS. Rows with the same question are samples of it.

    A row may also hold a list of completions, each a sample. `instruction` is added to the end of each question. At
    most `limit` rows are read, drawn with the seed. InputError if no completion is usable.
    """
    columns = {"question": question_column, "completion": completion_column, "answer": answer_column}
    found = read_rows(source, columns, KEY, lists=["completion"])
    if limit is not None and limit < len(found):
        found = found.select(sorted(random.Random(f"{seed}/{KEY}").sample(range(len(found)), limit)))
    task = DatasetTask(kind="dataset", **source.model_dump(include={"path", "hub"}), verifier=verifier)
    end_of_turn = end_of_turn_id(tokenizer)
    problems: dict[str, Problem] = {}
    samples: Counter[str] = Counter()
    rows, attempts = [], []
    with progress_bar("reading the calibration dataset", len(found)) as advance:
        for line in found:
            name = normalise(line["question"])
            if name not in problems:
                problems[name] = Problem(
                    f"{NAME}-{len(problems):05d}", NAME, line["question"], str(line["answer"]), "{}"
                )
            asked = _question(problems[name], task, tokenizer, tags, instruction)
            written = line["completion"]
            for completion in [written] if isinstance(written, str) else written:
                ids = encode_completion(tokenizer, continue_prompt(asked.prompt, completion, tags), end_of_turn)
                text = completion_text(tokenizer, ids, finished=True)
                row = _row(problems[name], asked, samples[name], text, ids)
                rows.append({**row, "finished": True, "source": "dataset"})
                attempts.append(Attempt(asked.id, task, asked.prompt, text, asked.answer, asked.metadata, tags))
                samples[name] += 1
            advance()
    with progress_bar("grading the completions", len(rows)) as advance:
        for row, correct in zip(rows, grade(attempts), strict=True):
            row["correct"] = correct
            advance()
    return _dataset(rows, task, tags)


def _question(
    problem: Problem, task: Task, tokenizer: PreTrainedTokenizerFast, tags: ThinkingTags, instruction: str | None
) -> Question:
    """The problem as the model gets it."""
    prompt, prompt_ids = render_prompt(tokenizer, problem.question, instruction)
    return Question(problem.id, task, prompt, prompt_ids, problem.answer, problem.metadata, tags)


def _row(
    problem: Problem, question: Question, sample: int, completion: str, completion_ids: list[int]
) -> dict[str, Any]:
    """The columns of a sample that follow from its problem and its completion."""
    return {
        "id": f"{problem.id}-{sample}",
        "problem_id": problem.id,
        "sample": sample,
        "task": problem.task,
        "question": problem.question,
        "answer": problem.answer,
        "metadata": problem.metadata,
        "prompt": question.prompt,
        "think_open": question.tags.open,
        "think_close": question.tags.close,
        "completion": completion,
        "prompt_ids": question.prompt_ids,
        "completion_ids": completion_ids,
        "prompt_tokens": len(question.prompt_ids),
        "completion_tokens": len(completion_ids),
    }


def _dataset(rows: list[dict[str, Any]], task: Task, tags: ThinkingTags) -> Dataset:
    """The rows as a data set, ordered by problem. InputError if no completion is usable."""
    right = sum(row["correct"] for row in rows)
    unfinished = sum(not row["finished"] for row in rows)
    problems = len({row["problem_id"] for row in rows})
    if not right:
        first = rows[0]
        raise InputError(
            f"{KEY}: none of {len(rows)} completions of {problems} problems is right, and {unfinished} of them are cut "
            f"off by the token limit.\n"
            f"  the first completion: {shortened(first['completion'])!r}\n"
            f"  looked for, in the text after the last {tags.close}: {looked_for(task, first['answer'])}\n"
            "Choose a verifier or task that reads answers in the form in which the model gives them. If many are cut "
            "off, raise max_new_tokens; if the model thinks between other tags, name them in models.thinking."
        )
    logger.info(
        "calibration samples: %d completions of %d problems: %d right (%.1f%%), %d cut off by the token limit",
        len(rows), problems, right, 100 * right / len(rows), unfinished,
    )  # fmt: skip
    rows.sort(key=lambda row: (row["problem_id"], row["sample"]))
    samples = Dataset.from_list(rows, features=SAMPLE_COLUMNS)
    usable_rows(samples)
    return samples
