"""Measuring candidates: every one answers the same problems with the same random numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from realign_pipes.data.prompts import render_prompt
from realign_pipes.generation.engine import Engine
from realign_pipes.generation.graded import Question, completion_text, read_graded, sample_and_grade, seconds_taken
from realign_pipes.generation.parameters import Sampling
from realign_pipes.models.fingerprint import fingerprint
from realign_pipes.models.load import read_stops
from realign_pipes.runtime.work import do_once
from realign_pipes.sweep.kinds import KINDS, Candidate
from realign_pipes.sweep.schemas import BUDGET_GENERATIONS, GENERATIONS, conform
from realign_pipes.tasks.completion import ThinkingTags
from realign_pipes.tasks.parameters import Problems

ORDER = ["task", "problem_id", "sample"]


class Evaluator:
    """Measures candidates on one evaluation set. What an interrupted run finished in the folder `work` is kept.

    `fingerprints` has those of all checkpoints; candidates with an instruction need the `tokenizer`'s chat template,
    and the `instruction` that the prompts of all problems have. A task with `samples` gets that many completions of
    each problem. Of n processes, number r lets the candidate answer the problems r, r + n, …; the main process puts
    the parts together.
    """

    def __init__(
        self,
        problems: Dataset,
        tasks: Mapping[str, Problems],
        *,
        fingerprints: Mapping[Path, str],
        tokenizer: PreTrainedTokenizerFast,
        work: Path,
        instruction: str | None = None,
    ) -> None:
        self.fingerprints, self.tokenizer, self.work = fingerprints, tokenizer, work
        self.tasks, self.instruction = tasks, instruction
        self._opened: tuple[Any, Engine] | None = None
        self.questions = [
            Question(
                row["id"],
                tasks[row["task"]],
                row["prompt"],
                row["prompt_ids"],
                row["answer"],
                row["metadata"],
                ThinkingTags(open=row["think_open"], close=row["think_close"]),
            )
            for row in problems
        ]
        self.texts = dict(zip(problems["id"], problems["question"], strict=True))
        self.task_names = dict(zip(problems["id"], problems["task"], strict=True))
        read = ("id", "prompt_ids", "answer", "metadata", "think_open", "think_close")
        self.problems = {
            "problems": fingerprint([list(problems[name]) for name in read]),
            "tasks": {name: task.model_dump() for name, task in tasks.items()},
        }

    def evaluate(self, candidates: Sequence[Candidate], sampling: Sampling) -> dict[str, Path]:
        """Parquet files of graded completions, by candidate, drawn with `sampling` or inside the candidate's budget.

        One engine serves consecutive candidates that differ only in an alpha that it takes as an argument, a schedule
        or a budget.

        Columns are those of `schemas.GENERATIONS`, or of BUDGET_GENERATIONS for candidates inside a budget.
        """
        return {candidate.name: self._evaluate(candidate, sampling) for candidate in candidates}

    def _evaluate(self, candidate: Candidate, sampling: Sampling) -> Path:
        state = PartialState()
        rank, count = state.process_index, state.num_processes
        if candidate.budget is not None:
            sampling = sampling.model_copy(update={"max_new_tokens": candidate.budget})
        kind = KINDS[candidate.kind]
        alpha = (candidate.schedule or candidate.alpha) if kind.takes_alpha else None
        questions = self._questions(candidate)
        by_samples = self._by_samples(questions, sampling)
        names = {
            samples: [
                f"completions-{number}-of-{count}{'' if samples == sampling.samples else f'-{samples}-samples'}.jsonl"
                for number in range(count)
            ]
            for samples in by_samples
        }

        def do(folder: Path) -> Callable[[Path], None]:
            for samples, group in by_samples.items():
                if not (own := group[rank::count]):
                    continue
                drawn = sample_and_grade(
                    lambda: self._engine(candidate),
                    own,
                    self.tokenizer,
                    sampling.model_copy(update={"samples": samples}),
                    folder / names[samples][rank],
                    description=f"evaluating {candidate.name}",
                    alpha=alpha,
                    close_at=candidate.close_at,
                    close_bias=candidate.alpha if kind.biases_close else 0.0,
                )
                for _ in drawn:
                    pass  # the file keeps them
            state.wait_for_everyone()
            files = [[folder / names[samples][number] for samples in names] for number in range(count)]
            return lambda path: self._frame(candidate, files).to_parquet(path, index=False)

        description = self._description(candidate, questions, sampling)
        return do_once(self.work / candidate.name, "generations.parquet", description, do)

    def _questions(self, candidate: Candidate) -> list[Question]:
        """The evaluation set's, with the candidate's instruction if it has one."""
        if candidate.instruction is None:
            return self.questions
        questions = []
        for question in self.questions:
            prompt, prompt_ids = render_prompt(
                self.tokenizer, self.texts[question.id], self.instruction, candidate.instruction
            )
            questions.append(replace(question, prompt=prompt, prompt_ids=prompt_ids))
        return questions

    def _by_samples(self, questions: Sequence[Question], sampling: Sampling) -> dict[int, list[Question]]:
        """How many completions -> the questions of the tasks that get so many."""
        groups: dict[int, list[Question]] = {}
        for question in questions:
            samples = self.tasks[self.task_names[question.id]].samples or sampling.samples
            groups.setdefault(samples, []).append(question)
        return groups

    def _engine(self, candidate: Candidate) -> Engine:
        """The engine of the last candidate if it also serves this one, else a new one in its place."""
        kind = KINDS[candidate.kind]
        of_the_model = kind.has_alpha and not kind.takes_alpha and not kind.biases_close
        fixed_alpha = candidate.alpha if of_the_model else None
        serves = (kind.open, candidate.checkpoints, fixed_alpha, candidate.plausibility, candidate.density)
        if self._opened is None or self._opened[0] != serves:
            self._opened = None  # before the next one needs the memory
            self._opened = serves, kind.open(candidate, len(self.tokenizer))
        return self._opened[1]

    def _description(self, candidate: Candidate, questions: Sequence[Question], sampling: Sampling) -> dict[str, Any]:
        """Everything that the candidate's completions depend on."""
        return {
            "candidate": {
                **asdict(candidate),
                "checkpoints": [self.fingerprints[path] for path in candidate.checkpoints],
            },
            **self.problems,
            "prompts": fingerprint([question.prompt_ids for question in questions]),
            "sampling": sampling.model_dump(),
            "stops": [read_stops(path) for path in candidate.checkpoints],
        }

    def _frame(self, candidate: Candidate, files: Sequence[Sequence[Path]]) -> pd.DataFrame:
        """The completions in the files of each process, with the seconds of the one that took longest."""
        rows = [
            {
                "candidate": candidate.name,
                "kind": candidate.kind,
                "alpha": candidate.alpha,
                "plausibility": candidate.plausibility,
                "budget": candidate.budget,
                "task": self.task_names[one.id],
                "problem_id": one.id,
                "sample": one.sample,
                "completion": completion_text(self.tokenizer, one.token_ids, one.finished),
                "completion_tokens": len(one.token_ids),
                "finished": one.finished,
                "correct": one.correct,
            }
            for of_process in files
            for file in of_process
            for one in read_graded(file)
        ]
        frame = pd.DataFrame(rows).sort_values(ORDER, ignore_index=True)
        frame = frame.assign(seconds=max(sum(map(seconds_taken, of_process)) for of_process in files))
        return conform(frame, GENERATIONS if candidate.budget is None else BUDGET_GENERATIONS)
