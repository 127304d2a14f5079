"""Graded completions of calibration problems: drawn from the reference model, or read from a dataset on disk."""

import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset

from realign_pipes.data.problems import Problem, draw_problems, normalise
from realign_pipes.data.prompts import continue_prompt, encode_completion, end_of_turn_id, render_prompt
from realign_pipes.data.schemas import SAMPLE_COLUMNS
from realign_pipes.errors import InputError
from realign_pipes.generation.graded import Question, completion_text, sample_and_grade
from realign_pipes.generation.parameters import Sampling
from realign_pipes.generation.transformers_engine import TransformersEngine
from realign_pipes.models.fingerprint import fingerprint, fingerprint_model, fingerprint_tokenizer
from realign_pipes.models.load import default_device, load_model, load_tokenizer
from realign_pipes.models.trust import check_checkpoint
from realign_pipes.runtime.progress import progress_bar
from realign_pipes.runtime.work import open_work
from realign_pipes.tasks.dataset_task import read_rows
from realign_pipes.tasks.grading import Attempt, grade
from realign_pipes.tasks.parameters import DatasetTask, Problems, Task, Verifier

logger = logging.getLogger(__name__)

NAME = "calibration"
ENOUGH = 64
"""Completions after which none that is right means that something is wrong, and nothing more is drawn."""


def draw_samples(task: Problems, sampling: Sampling, reference: Path, *, seed: int, work: Path) -> Dataset:
    """Completions that the reference draws, `sampling.samples` of each problem, with SAMPLE_COLUMNS.

    Whatever can be wrong with the task and the checkpoint is found before the model runs. Sampling that was interrupted
    resumes from the last finished batch in `work`. ValueError once ENOUGH completions are drawn and none is right.
    """
    check_checkpoint(reference)
    tokenizer = load_tokenizer(reference)
    problems = draw_problems("data_prep.calibration.task", NAME, task, seed)
    rendered = {problem.id: render_prompt(tokenizer, problem.question) for problem in problems}
    questions = [
        Question(problem.id, task, *rendered[problem.id], problem.answer, problem.metadata) for problem in problems
    ]
    generation_config = reference / "generation_config.json"
    description = {
        "what": "calibration samples",
        "reference": fingerprint_model(reference),
        "tokenizer": fingerprint_tokenizer(tokenizer),
        "generation_config": generation_config.read_text() if generation_config.exists() else None,
        "task": task.model_dump(),
        "prompts": fingerprint(rendered),
        "sampling": sampling.model_dump(),
    }
    by_id = {problem.id: problem for problem in problems}
    drawn = sample_and_grade(
        lambda: TransformersEngine(load_model(reference, device=default_device()), tokenizer.pad_token_id),
        questions,
        tokenizer,
        sampling,
        open_work(work, description) / "completions.jsonl",
        description="sampling the reference model",
    )
    records = (
        {
            **_record(
                by_id[one.id],
                one.sample,
                rendered[one.id],
                completion_text(tokenizer, one.token_ids, one.finished),
                one.token_ids,
                one.finished,
                "sampled",
            ),
            "correct": one.correct,
        }
        for one in drawn
    )
    return _collect(records, task)


def read_samples(
    path: str,
    *,
    question_column: str,
    completion_column: str,
    answer_column: str,
    verifier: Verifier,
    limit: int | None,
    reference: Path,
    seed: int,
) -> Dataset:
    """The completions in a dataset on disk, graded, with SAMPLE_COLUMNS. Rows with one question are samples of it.

    At most `limit` rows are read, drawn with the seed.
    """
    key = "data_prep.calibration"
    tokenizer = load_tokenizer(reference)
    columns = {"question": question_column, "completion": completion_column, "answer": answer_column}
    rows = read_rows(path, columns, key)
    if limit is not None and limit < len(rows):
        rows = rows.select(sorted(random.Random(f"{seed}/{key}").sample(range(len(rows)), limit)))
    end_of_turn = end_of_turn_id(tokenizer)
    problems: dict[str, Problem] = {}
    samples: Counter[str] = Counter()
    records = []
    with progress_bar("reading the calibration dataset", len(rows)) as advance:
        for row in rows:
            question = normalise(row["question"])
            if question not in problems:
                identity = f"{NAME}-{len(problems):05d}"
                problems[question] = Problem(identity, NAME, row["question"], str(row["answer"]), "{}")
            problem = problems[question]
            rendered = render_prompt(tokenizer, problem.question)
            text = continue_prompt(rendered[0], row["completion"])
            ids = encode_completion(tokenizer, text, end_of_turn)
            text = completion_text(tokenizer, ids, finished=True)
            records.append(_record(problem, samples[question], rendered, text, ids, True, "dataset"))
            samples[question] += 1
            advance()
    task = DatasetTask(kind="dataset", path=path, verifier=verifier)
    return _collect(_graded(records, task), task)


def _graded(records: list[dict[str, Any]], task: Task) -> Iterator[dict[str, Any]]:
    """The records with `correct`."""
    attempts = [
        Attempt(row["problem_id"], task, row["prompt"], row["completion"], row["answer"], row["metadata"])
        for row in records
    ]
    with progress_bar("grading the completions", len(records)) as advance:
        for row, correct in zip(records, grade(attempts), strict=True):
            yield {**row, "correct": correct}
            advance()


def _collect(records: Iterable[dict[str, Any]], task: Task) -> Dataset:
    """All records as a data set, ordered by problem. ValueError if none of the first ENOUGH is right."""
    rows: list[dict[str, Any]] = []
    right = 0
    for record in records:
        rows.append(record)
        right += record["correct"]
        if not right and len(rows) == ENOUGH:
            break
    unfinished = sum(not row["finished"] for row in rows)
    if not right:
        first = rows[0]
        form = "\\boxed{…}" if isinstance(task, DatasetTask) else "<answer>…</answer>"
        raise InputError(
            f"data_prep.calibration: none of the first {len(rows)} completions is right, and {unfinished} of them are "
            f"cut off by the token limit. Looked for was the answer {first['answer']!r} as {form} after the thinking; "
            f"the first completion ends in {first['completion'][-200:]!r}. Check the form that the task's verifier "
            "reads, that max_new_tokens suffices, and that the model can do the task."
        )
    logger.info(
        "calibration samples: %d completions of %d problems: %d right (%.1f%%), %d cut off by the token limit",
        len(rows), len({row["problem_id"] for row in rows}), right, 100 * right / len(rows), unfinished,
    )  # fmt: skip
    rows.sort(key=lambda row: (row["problem_id"], row["sample"]))
    return Dataset.from_list(rows, features=SAMPLE_COLUMNS)


def _record(
    problem: Problem,
    sample: int,
    rendered: tuple[str, list[int]],
    completion: str,
    completion_ids: list[int],
    finished: bool,
    source: str,
) -> dict[str, Any]:
    prompt, prompt_ids = rendered
    return {
        "id": f"{problem.id}-{sample}",
        "problem_id": problem.id,
        "sample": sample,
        "task": problem.task,
        "question": problem.question,
        "answer": problem.answer,
        "metadata": problem.metadata,
        "prompt": prompt,
        "completion": completion,
        "prompt_ids": prompt_ids,
        "completion_ids": completion_ids,
        "prompt_tokens": len(prompt_ids),
        "completion_tokens": len(completion_ids),
        "finished": finished,
        "source": source,
    }
