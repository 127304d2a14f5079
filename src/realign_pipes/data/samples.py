"""Completions of calibration problems, graded where these have answers: drawn from a model, or read from a dataset."""

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from realign_pipes.data.calibration import is_usable, shortened, usable_rows
from realign_pipes.data.parameters import Replies
from realign_pipes.data.problems import Problem, draw_problems, normalise
from realign_pipes.data.prompts import complete_reply, encode_completion, end_of_turn_id, render_prompt
from realign_pipes.data.schemas import SAMPLE_COLUMNS
from realign_pipes.errors import InputError
from realign_pipes.generation.engine import Description, Engine
from realign_pipes.generation.graded import Question, check_length, completion_text, sample_and_grade
from realign_pipes.generation.parameters import Sampling
from realign_pipes.models.fingerprint import fingerprint, fingerprint_model, fingerprint_tokenizer
from realign_pipes.models.load import max_positions, read_stops
from realign_pipes.runtime.progress import progress_bar
from realign_pipes.runtime.work import open_work
from realign_pipes.tasks.chats import UnusableRowError, chat_text, draw_rows, question_turn, read_usable, split_example
from realign_pipes.tasks.completion import Thinking, ThinkingTags
from realign_pipes.tasks.dataset_task import check_exact, read_rows
from realign_pipes.tasks.grading import Attempt, grade, has_answers, looked_for
from realign_pipes.tasks.parameters import DatasetTask, Problems, Task, Verifier

logger = logging.getLogger(__name__)

KEY = "data_prep.calibration"
"""The parameter that messages name."""
NAME = "calibration"
ENOUGH = 32
"""If this many problems have no usable completion, no more are drawn: something is wrong."""


def calibration_problems(task: Problems, seed: int) -> list[Problem]:
    """The problems whose completions `draw_samples` draws."""
    return draw_problems(f"{KEY}.task", NAME, task, seed)


def draw_samples(
    open_engine: Callable[[], Engine],
    task: Problems,
    sampling: Sampling,
    tokenizer: PreTrainedTokenizerFast,
    tags: ThinkingTags,
    *,
    checkpoint: Path,
    thinking: Thinking,
    seed: int,
    drawn_by: Description,
    work: Path,
    instruction: str | None = None,
) -> Dataset:
    """Completions that the model in `checkpoint` draws, `sampling.samples` of each problem, with SAMPLE_COLUMNS.

    `instruction` is added to the end of each question. `open_engine` opens the checkpoint, after the problems and the
    length of their prompts were checked; `drawn_by` says what it will be. It is closed in the end. Sampling that was
    interrupted resumes in `work`.

    InputError if no completion is usable, as soon as ENOUGH problems are answered.
    """
    problems = {problem.id: problem for problem in calibration_problems(task, seed)}
    questions = {name: _question(problem, task, tokenizer, tags, instruction) for name, problem in problems.items()}
    check_length(
        [question.prompt_ids for question in questions.values()],
        sampling.max_new_tokens,
        max_positions(checkpoint),
        parameter=f"{KEY}.sampling.max_new_tokens",
        model=str(checkpoint),
    )
    description = {
        "what": "calibration samples",
        "model": fingerprint_model(checkpoint),
        "tokenizer": fingerprint_tokenizer(tokenizer),
        "stops": read_stops(checkpoint),
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
        description="sampling the calibration's completions",
    )
    rows: list[dict[str, Any]] = []
    answered, usable = set(), 0
    with opened, closing(drawn):
        for one in drawn:
            text = completion_text(tokenizer, one.token_ids, one.finished)
            row = _row(problems[one.id], questions[one.id], one.sample, text, one.token_ids, thinking)
            rows.append({**row, "finished": one.finished, "correct": one.correct, "source": "sampled"})
            answered.add(one.id)
            usable += is_usable(one.correct, one.finished, questions[one.id].prompt, text, tags, thinking)
            if not usable and len(answered) > ENOUGH:
                break
    return _dataset(rows, task, tags)


def read_samples(
    source: Replies,
    *,
    answer_column: str,
    verifier: Verifier,
    max_tokens: int,
    positions: int | None,
    tokenizer: PreTrainedTokenizerFast,
    tags: ThinkingTags,
    thinking: Thinking,
    seed: int,
    instruction: str | None = None,
) -> Dataset:
    """The completions in a dataset, graded, with SAMPLE_COLUMNS. Rows with the same question are samples of it.

    A row may also hold a list of completions, each a sample; of a chat, its last reply is the one. `instruction` is
    added to the end of each question. A completion of at most `max_tokens` has to fit into the reference's `positions`
    with its prompt. InputError if no completion is usable, and for what `check_exact` and `chats.read_usable` refuse.
    """
    columns = {"question": source.question_column, "completion": source.completion_column}
    if source.messages_column is not None:
        columns = {"messages": source.messages_column}
    if verifier != "none":
        columns["answer"] = answer_column
    found = read_rows(source, columns, KEY, lists=["completion"], chats=["messages"])
    check_exact(found, verifier, f"{KEY}: {source.named()}")
    task = DatasetTask(kind="dataset", **source.model_dump(include={"path", "hub"}), verifier=verifier)
    end_of_turn = end_of_turn_id(tokenizer)
    problems: dict[str, Problem] = {}
    samples: Counter[str] = Counter()

    def build(line: dict[str, Any]) -> list[tuple[dict[str, Any], Attempt]]:
        chat, written = split_example(line["messages"]) if "messages" in line else (None, line["completion"])
        question = line["question"] if chat is None else chat_text(chat)
        if chat is None:
            question_turn(question)
        name = normalise(question)
        answer = str(line["answer"]) if "answer" in line else None
        problem = problems.get(name) or Problem(f"{NAME}-{len(problems):05d}", NAME, question, answer, "{}", chat)
        asked = _question(problem, task, tokenizer, tags, instruction)
        built: list[tuple[dict[str, Any], Attempt]] = []
        for completion in [written] if isinstance(written, str) else written:
            if not completion.strip():
                raise UnusableRowError("the reply is empty")
            reply = complete_reply(asked.prompt, completion, tags, thinking)
            ids = encode_completion(tokenizer, reply, end_of_turn)
            if positions is not None and len(ids) <= max_tokens and len(asked.prompt_ids) + len(ids) > positions:
                raise UnusableRowError(f"prompt and reply have {len(asked.prompt_ids) + len(ids):,} tokens, and the "
                                       f"reference {positions:,} positions")  # fmt: skip
            text = completion_text(tokenizer, ids, finished=True)
            row = _row(problem, asked, samples[name] + len(built), text, ids, thinking)
            attempt = Attempt(asked.id, task, asked.prompt, text, asked.answer, asked.metadata, tags)
            built.append(({**row, "finished": True, "source": "dataset"}, attempt))
        problems[name] = problem
        samples[name] += len(built)
        return built

    read = read_usable(found, draw_rows(len(found), source.limit, seed, KEY), build, source, KEY)
    rows = [row for built in read for row, _ in built]
    attempts = [attempt for built in read for _, attempt in built]
    with progress_bar("grading the completions", len(rows)) as advance:
        for row, correct in zip(rows, grade(attempts), strict=True):
            row["correct"] = correct
            advance()
    return _dataset(rows, task, tags)


def _question(
    problem: Problem, task: Task, tokenizer: PreTrainedTokenizerFast, tags: ThinkingTags, instruction: str | None
) -> Question:
    """The problem as the model gets it."""
    prompt, prompt_ids = render_prompt(tokenizer, problem.chat, instruction)
    return Question(problem.id, task, prompt, prompt_ids, problem.answer, problem.metadata, tags)


def _row(
    problem: Problem,
    question: Question,
    sample: int,
    completion: str,
    completion_ids: list[int],
    thinking: Thinking,
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
        "thinking": thinking,
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
    graded, right = has_answers(task), sum(row["correct"] is True for row in rows)
    unfinished = sum(not row["finished"] for row in rows)
    problems = len({row["problem_id"] for row in rows})
    if graded and not right:
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
        "calibration samples: %d completions of %d problems: %s, %d cut off by the token limit",
        len(rows), problems, f"{right} right ({100 * right / len(rows):.1f}%)" if graded else "not graded", unfinished,
    )  # fmt: skip
    rows.sort(key=lambda row: (row["problem_id"], row["sample"]))
    samples = Dataset.from_list(rows, features=SAMPLE_COLUMNS)
    usable_rows(samples)
    return samples
