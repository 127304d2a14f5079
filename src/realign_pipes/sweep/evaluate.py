"""Measuring candidates: every one answers the same problems with the same random numbers."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import GenerationConfig, PreTrainedTokenizerFast

from realign_pipes.generation.engine import Engine
from realign_pipes.generation.graded import Question, completion_text, read_graded, sample_and_grade, seconds_taken
from realign_pipes.generation.parameters import Sampling
from realign_pipes.generation.transformers_engine import TransformersEngine
from realign_pipes.models.fingerprint import fingerprint
from realign_pipes.runtime.work import do_once
from realign_pipes.sweep.kinds import KINDS, Candidate
from realign_pipes.sweep.schemas import BUDGET_GENERATIONS, GENERATIONS, conform
from realign_pipes.tasks.parameters import Task

ORDER = ["task", "problem_id", "sample"]


class Evaluator:
    """Measures candidates on one evaluation set; what an interrupted run finished is read from the folder `work`.

    `fingerprints` has those of all checkpoints. Of n processes, number r answers the problems r, r + n, …; the main
    process puts the parts together.
    """

    def __init__(
        self,
        problems: Dataset,
        tasks: Mapping[str, Task],
        *,
        fingerprints: Mapping[Path, str],
        tokenizer: PreTrainedTokenizerFast,
        device: torch.device,
        work: Path,
    ) -> None:
        self.fingerprints, self.tokenizer, self.device, self.work = fingerprints, tokenizer, device, work
        self.questions = [
            Question(row["id"], tasks[row["task"]], row["prompt"], row["prompt_ids"], row["answer"], row["metadata"])
            for row in problems
        ]
        self.task_names = dict(zip(problems["id"], problems["task"], strict=True))
        self.problems = {
            "problems": fingerprint([list(problems[name]) for name in ("id", "prompt_ids", "answer", "metadata")]),
            "tasks": {name: task.model_dump() for name, task in tasks.items()},
        }

    def evaluate(self, candidates: Sequence[Candidate], sampling: Sampling) -> dict[str, Path]:
        """Parquet files of graded completions, by candidate. Several candidates are alphas of one loaded model.

        Columns are those of `schemas.GENERATIONS`, or of BUDGET_GENERATIONS for candidates inside a budget.
        """

        @functools.cache
        def open_engine() -> Engine:
            model = KINDS[candidates[0].kind].load(candidates[0], len(self.tokenizer), self.device)
            return TransformersEngine(model, self.tokenizer.pad_token_id)

        return {candidate.name: self._evaluate(candidate, sampling, open_engine) for candidate in candidates}

    def _evaluate(self, candidate: Candidate, sampling: Sampling, open_engine: Callable[[], Engine]) -> Path:
        state = PartialState()
        rank, count = state.process_index, state.num_processes
        names = [f"completions-{number}-of-{count}.jsonl" for number in range(count)]
        alpha = (candidate.schedule or candidate.alpha) if KINDS[candidate.kind].takes_alpha else None

        def do(folder: Path) -> Callable[[Path], None]:
            own = self.questions[rank::count]
            if own:
                drawn = sample_and_grade(
                    open_engine,
                    own,
                    self.tokenizer,
                    sampling,
                    folder / names[rank],
                    description=f"evaluating {candidate.name}",
                    alpha=alpha,
                )
                for _ in drawn:
                    pass  # the file keeps them
            state.wait_for_everyone()
            return lambda path: self._frame(candidate, [folder / name for name in names]).to_parquet(path, index=False)

        return do_once(self.work / candidate.name, "generations.parquet", self._description(candidate, sampling), do)

    def _description(self, candidate: Candidate, sampling: Sampling) -> dict[str, Any]:
        """All that the candidate's completions depend on."""
        return {
            "candidate": {
                **asdict(candidate),
                "checkpoints": [self.fingerprints[path] for path in candidate.checkpoints],
            },
            **self.problems,
            "sampling": sampling.model_dump(),
            "stops": [GenerationConfig.from_pretrained(path).eos_token_id for path in candidate.checkpoints],
        }

    def _frame(self, candidate: Candidate, files: Sequence[Path]) -> pd.DataFrame:
        rows = [
            {
                "candidate": candidate.name,
                "kind": candidate.kind,
                "alpha": candidate.alpha,
                "budget": candidate.budget,
                "task": self.task_names[one.id],
                "problem_id": one.id,
                "sample": one.sample,
                "completion": completion_text(self.tokenizer, one.token_ids, one.finished),
                "completion_tokens": len(one.token_ids),
                "finished": one.finished,
                "correct": one.correct,
            }
            for file in files
            for one in read_graded(file)
        ]
        frame = pd.DataFrame(rows).sort_values(ORDER, ignore_index=True)
        frame = frame.assign(seconds=max(seconds_taken(file) for file in files))
        return conform(frame, GENERATIONS if candidate.budget is None else BUDGET_GENERATIONS)
