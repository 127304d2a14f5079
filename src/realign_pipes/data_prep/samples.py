"""Graded completions of calibration problems: drawn from the reference model, or read from a dataset on disk."""

import json
import logging
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerFast

from realign_pipes.data_prep.problems import Problem, draw_problems, normalise
from realign_pipes.data_prep.prompts import (
    continue_prompt,
    decode_completion,
    encode_completion,
    end_of_turn_id,
    render_prompt,
)
from realign_pipes.evaluation.sampling import sample_completions
from realign_pipes.parameters import DataPrep, DatasetCalibration, DatasetTask, SampledCalibration, Task
from realign_pipes.progress import progress_bar
from realign_pipes.realignment.checkpoints import (
    check_checkpoint,
    default_device,
    fingerprint_model,
    fingerprint_tokenizer,
    load_model,
    load_tokenizer,
)
from realign_pipes.resume import atomic_path, fingerprint, open_work
from realign_pipes.tasks.dataset_task import read_rows
from realign_pipes.tasks.grading import Attempt, grade

logger = logging.getLogger(__name__)

NAME = "calibration"
SAMPLE_COLUMNS = Features(
    {
        "id": Value("string"),  # of the completion
        "problem_id": Value("string"),
        "sample": Value("int32"),
        "task": Value("string"),
        "question": Value("string"),
        "answer": Value("string"),
        "metadata": Value("string"),  # JSON: what the verifier needs
        "prompt": Value("string"),  # through the chat template
        "completion": Value("string"),  # with its tags, without the end-of-turn token
        "prompt_ids": List(Value("int32")),
        "completion_ids": List(Value("int32")),  # what follows prompt_ids, with the end-of-turn token
        "prompt_tokens": Value("int32"),
        "completion_tokens": Value("int32"),
        "correct": Value("bool"),
        "finished": Value("bool"),  # False where the token limit cut it off
        "source": Value("string"),  # sampled or dataset
    }
)


def collect_samples(parameters: DataPrep, reference: Path, work: Path) -> Dataset:
    """Every completion of the calibration's problems, right and wrong ones, with SAMPLE_COLUMNS.

    Whatever can be wrong with the parameters, the datasets that they name and the checkpoint is found before a model
    runs. Sampling that was interrupted goes on from the last finished batch in `work`.
    """
    check_checkpoint(reference)
    tokenizer = load_tokenizer(reference)
    for name, task in parameters.tasks.items():  # needed only later, but an error is best found now
        draw_problems(f"data_prep.tasks.{name}", name, task, parameters.seed)
    calibration = parameters.calibration
    if isinstance(calibration, SampledCalibration):
        calibration_task: Task = calibration.task
        records = _sample(calibration, parameters.seed, reference, tokenizer, work)
    else:
        calibration_task = DatasetTask(kind="dataset", path=calibration.path, verifier=calibration.verifier)
        records = _read(calibration, parameters.seed, tokenizer)
    rows = sorted(records, key=lambda record: (record["problem_id"], record["sample"]))
    _grade(rows, calibration_task)
    _report(rows)
    return Dataset.from_list(rows, features=SAMPLE_COLUMNS)


def _sample(
    calibration: SampledCalibration, seed: int, reference: Path, tokenizer: PreTrainedTokenizerFast, work: Path
) -> Iterator[dict[str, Any]]:
    """Records of completions that the reference draws, `sampling.samples` of each problem."""
    problems = draw_problems("data_prep.calibration.task", NAME, calibration.task, seed)
    rendered = {problem.id: render_prompt(tokenizer, problem.question) for problem in problems}
    problems.sort(key=lambda problem: -len(rendered[problem.id][1]))  # rows of a batch are so of like length
    sampling = calibration.sampling
    size = max(1, sampling.batch_size // sampling.samples)
    batches = [problems[start : start + size] for start in range(0, len(problems), size)]
    generation_config = reference / "generation_config.json"
    work = open_work(
        work,
        {
            "what": "calibration samples",
            "reference": fingerprint_model(reference),
            "tokenizer": fingerprint_tokenizer(tokenizer),
            "generation_config": generation_config.read_text() if generation_config.exists() else None,
            "prompts": fingerprint(rendered),
            "sampling": sampling.model_dump(),
        },
    )
    model = None
    with progress_bar("sampling the reference model", len(problems) * sampling.samples) as advance:
        for number, batch in enumerate(batches):
            file = work / f"batch-{number:05d}.json"
            if not file.exists():
                if model is None:
                    model = load_model(reference, device=default_device())
                ids = [rendered[problem.id][1] for problem in batch]
                keys = [problem.id for problem in batch]
                drawn = [
                    (completion.prompt_index, completion.sample, completion.token_ids, completion.finished)
                    for part in sample_completions(model, ids, keys, sampling, pad_token_id=tokenizer.pad_token_id)
                    for completion in part
                ]
                with atomic_path(file) as temporary:
                    temporary.write_text(json.dumps(drawn))
            for index, sample, token_ids, finished in json.loads(file.read_text()):
                problem = batch[index]
                text = decode_completion(tokenizer, token_ids, finished)
                yield _record(problem, sample, rendered[problem.id], text, token_ids, finished, "sampled")
            advance(len(batch) * sampling.samples)


def _read(calibration: DatasetCalibration, seed: int, tokenizer: PreTrainedTokenizerFast) -> Iterator[dict[str, Any]]:
    """Records of the completions in a dataset; rows with one question are samples of one problem."""
    key = "data_prep.calibration"
    rows = read_rows(
        calibration.path,
        {
            "question": calibration.question_column,
            "completion": calibration.completion_column,
            "answer": calibration.answer_column,
        },
        key,
    )
    if calibration.limit is not None and calibration.limit < len(rows):
        rows = rows.select(sorted(random.Random(f"{seed}/{key}").sample(range(len(rows)), calibration.limit)))
    end_of_turn = end_of_turn_id(tokenizer)
    problems: dict[str, Problem] = {}
    samples: Counter[str] = Counter()
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
            text = decode_completion(tokenizer, ids, finished=True)
            yield _record(problem, samples[question], rendered, text, ids, True, "dataset")
            samples[question] += 1
            advance()


def _grade(rows: list[dict[str, Any]], task: Task) -> None:
    """Add `correct` to each row."""
    attempts = [
        Attempt(row["problem_id"], task, row["prompt"], row["completion"], row["answer"], row["metadata"])
        for row in rows
    ]
    with progress_bar("grading the completions", len(rows)) as advance:
        for row, correct in zip(rows, grade(attempts), strict=True):
            row["correct"] = correct
            advance()


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


def _report(rows: list[dict[str, Any]]) -> None:
    """Log how many completions are right; ValueError if none is."""
    right = sum(row["correct"] for row in rows)
    unfinished = sum(not row["finished"] for row in rows)
    problems = len({row["problem_id"] for row in rows})
    share = f"{right} right ({right / len(rows):.1%}), {unfinished} cut off by the token limit"
    if not right:
        row = rows[0]
        raise ValueError(f"data_prep.calibration: {len(rows)} completions of {problems} problems: {share}. The first, "
                         f"for the answer {row['answer']!r}, ends in {row['completion'][-200:]!r}. Check that it "
                         "answers in the form that the task's verifier reads (<answer>…</answer> or \\boxed{…}, after "
                         "the thinking), that max_new_tokens suffices, and that the model can do it.")  # fmt: skip
    logger.info("calibration samples: %d completions of %d problems: %s", len(rows), problems, share)
