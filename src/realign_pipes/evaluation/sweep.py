"""The alpha sweep: every candidate answers the same problems with the same random numbers."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from realign_pipes.evaluation.sampling import sample_completions
from realign_pipes.parameters import Sampling, Task
from realign_pipes.progress import progress_bar
from realign_pipes.realignment.checkpoints import load_model
from realign_pipes.realignment.dera import DeRaForCausalLM
from realign_pipes.resume import atomic_path, fingerprint, open_work
from realign_pipes.tasks.grading import is_correct


@dataclass(frozen=True)
class Candidate:
    """One row of the sweep: a model, or for DeRa two, and an alpha."""

    name: str
    kind: str
    """reference, aligned, dera, trra or trra_iter."""
    alpha: float
    """NaN for the reference and the aligned model, which are no mixtures."""
    checkpoints: tuple[Path, ...]
    """One checkpoint; DeRa has the reference's and the aligned model's."""


def load_candidate(candidate: Candidate, vocab_size: int, device: torch.device) -> PreTrainedModel:
    """The candidate as one model with `generate`."""
    models = [load_model(path, device=device) for path in candidate.checkpoints]
    if candidate.kind != "dera":
        return models[0]
    reference, aligned = models
    return DeRaForCausalLM(reference, aligned, candidate.alpha, vocab_size)


def evaluate(
    candidate: Candidate,
    fingerprints: Mapping[Path, str],
    problems: Dataset,
    tasks: Mapping[str, Task],
    sampling: Sampling,
    *,
    tokenizer: PreTrainedTokenizerFast,
    device: torch.device,
    work: Path,
) -> pd.DataFrame:
    """The candidate's graded completions, one a row; read from the folder `work` if a run finished them before.

    Columns: candidate, kind, alpha, task, problem_id, sample, completion, completion_tokens, finished, correct, and
    seconds (the time the whole candidate took, without loading).
    """
    description: dict[str, Any] = {
        "candidate": {**asdict(candidate), "checkpoints": [fingerprints[path] for path in candidate.checkpoints]},
        "problems": fingerprint([list(problems[column]) for column in ("id", "prompt_ids", "answer", "metadata")]),
        "tasks": {name: task.model_dump() for name, task in tasks.items()},
        "sampling": sampling.model_dump(),
        "stops": [GenerationConfig.from_pretrained(path).eos_token_id for path in candidate.checkpoints],
    }
    finished = open_work(work, description) / "generations.parquet"
    if not finished.exists():
        frame = _generate(candidate, problems, tasks, sampling, tokenizer=tokenizer, device=device)
        with atomic_path(finished) as temporary:
            frame.to_parquet(temporary)
    return pd.read_parquet(finished)


def _generate(
    candidate: Candidate,
    problems: Dataset,
    tasks: Mapping[str, Task],
    sampling: Sampling,
    *,
    tokenizer: PreTrainedTokenizerFast,
    device: torch.device,
) -> pd.DataFrame:
    model = load_candidate(candidate, len(tokenizer), device)
    rows = []
    start = time.perf_counter()
    with progress_bar(f"evaluating {candidate.name}", len(problems) * sampling.samples) as advance:
        batches = sample_completions(
            model, list(problems["prompt_ids"]), list(problems["id"]), sampling, pad_token_id=tokenizer.pad_token_id
        )
        for batch in batches:
            for completion in batch:
                problem = problems[completion.prompt_index]
                tokens = completion.token_ids
                text = tokenizer.decode(tokens[:-1] if completion.finished else tokens)
                correct = is_correct(
                    tasks[problem["task"]], problem["prompt"], text, problem["answer"], problem["metadata"]
                )
                rows.append(
                    {
                        "candidate": candidate.name,
                        "kind": candidate.kind,
                        "alpha": candidate.alpha,
                        "task": problem["task"],
                        "problem_id": problem["id"],
                        "sample": completion.sample,
                        "completion": text,
                        "completion_tokens": len(tokens),
                        "finished": completion.finished,
                        "correct": correct,
                    }
                )
            advance(len(batch))
    frame = pd.DataFrame(rows).sort_values(["task", "problem_id", "sample"], ignore_index=True)
    return frame.assign(seconds=time.perf_counter() - start)
