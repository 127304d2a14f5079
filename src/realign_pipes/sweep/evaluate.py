"""Measuring candidates: every one answers the same problems with the same random numbers."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from realign_pipes.data.prompts import render_prompt
from realign_pipes.generation.closing import check_closing_tag
from realign_pipes.generation.engine import Description, Engine
from realign_pipes.generation.graded import Question, completion_text, read_graded, sample_and_grade, seconds_taken
from realign_pipes.generation.parameters import Sampling
from realign_pipes.generation.servers import Served, Servers
from realign_pipes.generation.transformers_engine import describe
from realign_pipes.generation.vllm_engine import VLLMEngine
from realign_pipes.models.fingerprint import fingerprint
from realign_pipes.models.load import read_dtype, read_stops, resolve_adapter
from realign_pipes.runtime.work import do_once
from realign_pipes.sweep.kinds import KINDS, Candidate, model_of
from realign_pipes.sweep.schemas import BUDGET_GENERATIONS, GENERATIONS, conform
from realign_pipes.tasks.completion import ThinkingTags
from realign_pipes.tasks.parameters import Problems

logger = logging.getLogger(__name__)

ORDER = ["task", "problem_id", "sample"]


def questions_of(problems: Dataset, tasks: Mapping[str, Problems]) -> list[Question]:
    """The problems of an evaluation set (EVALUATION_COLUMNS)."""
    return [
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


class Evaluator:
    """Measures candidates on one evaluation set. What an interrupted run finished in the folder `work` is kept.

    `fingerprints` has those of all checkpoints; candidates with an instruction need the `tokenizer`'s chat template,
    and the `instruction` that the prompts of all problems have. A task with `samples` gets that many completions of
    each problem. Of n processes, number r lets the candidate answer the problems r, r + n, …; the main process puts
    the parts together.

    `servers` draw for the candidates that they can, and Transformers for the others; None: for all. `close` it, as the
    last engine is kept for further candidates.
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
        servers: Servers | None = None,
        attn_implementation: str | None = None,
    ) -> None:
        self.fingerprints, self.tokenizer, self.work, self.servers = fingerprints, tokenizer, work, servers
        self.tasks, self.instruction, self.attn_implementation = tasks, instruction, attn_implementation
        self._opened: tuple[Any, Engine] | None = None
        self.questions = questions_of(problems, tasks)
        self.chats = dict(zip(problems["id"], problems["messages"], strict=True))
        self.task_names = dict(zip(problems["id"], problems["task"], strict=True))
        read = ("id", "prompt_ids", "answer", "metadata", "think_open", "think_close")
        self.problems = {
            "problems": fingerprint([list(problems[name]) for name in read]),
            "tasks": {name: task.model_dump() for name, task in tasks.items()},
        }

    def evaluate(self, candidates: Sequence[Candidate], sampling: Sampling) -> dict[str, Path]:
        """Parquet files of graded completions, by candidate, drawn with `sampling` or inside the candidate's budget.

        One engine serves the candidates that differ only in an alpha that it takes as an argument, a schedule or a
        budget; one server those with the same checkpoint.

        Columns are those of `schemas.GENERATIONS`, or of BUDGET_GENERATIONS for candidates inside a budget.

        InputError, before anything is drawn, for a candidate that no server has and that one should, and for a closing
        tag that would not be found in what candidates write whose thinking is closed.
        """
        if any(one.close_at is not None or KINDS[one.kind].biases_close for one in candidates):
            for tag in sorted({question.tags.close for question in self.questions}):
                check_closing_tag(self.tokenizer, tag)
        served = {candidate.name: self._served(candidate) for candidate in candidates}
        if self.servers is not None and (others := [name for name, one in served.items() if one is None]):
            logger.info("drawn with Transformers, as no server can: %s", ", ".join(others))
        loads = [self._loads(candidate, served[candidate.name]) for candidate in candidates]
        together = sorted(range(len(candidates)), key=lambda number: loads.index(loads[number]))
        made = {}
        for number in together:
            candidate = candidates[number]
            made[candidate.name] = self._evaluate(candidate, served[candidate.name], sampling)
        return {candidate.name: made[candidate.name] for candidate in candidates}

    def close(self) -> None:
        """Close the last engine."""
        if self._opened is not None:
            self._opened[1].close()
            self._opened = None

    def _evaluate(self, candidate: Candidate, served: Served | None, sampling: Sampling) -> Path:
        state = PartialState()
        rank, count = state.process_index, state.num_processes
        drawn_by = self._drawn_by(candidate, served)
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
                    lambda: self._engine(candidate, served),
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
            return lambda path: self._frame(candidate, str(drawn_by), files).to_parquet(path, index=False)

        description = {**self._description(candidate, questions, sampling), "engine": asdict(drawn_by)}
        return do_once(self.work / candidate.name, "generations.parquet", description, do)

    def _questions(self, candidate: Candidate) -> list[Question]:
        """The evaluation set's, with the candidate's instruction if it has one."""
        if candidate.instruction is None:
            return self.questions
        questions = []
        for question in self.questions:
            prompt, prompt_ids = render_prompt(
                self.tokenizer, self.chats[question.id], self.instruction, candidate.instruction
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

    def _served(self, candidate: Candidate) -> Served | None:
        """What a server loads for the candidate; None if Transformers draws."""
        serve = KINDS[candidate.kind].serve
        if self.servers is None or serve is None:
            return None
        served = serve(candidate, self.work / "served")
        return served if self.servers.serves(served) else None

    def _drawn_by(self, candidate: Candidate, served: Served | None) -> Description:
        if served is not None and self.servers is not None:
            return self.servers.describe(served)
        return describe(" and ".join(read_dtype(resolve_adapter(path) or path) for path in candidate.checkpoints[:1]))

    def _loads(self, candidate: Candidate, served: Served | None) -> Any:
        """What candidates of one engine have in common."""
        return model_of(candidate) if served is None else served.path

    def _engine(self, candidate: Candidate, served: Served | None) -> Engine:
        """The engine of the last candidate if it also serves this one, else a new one in its place."""
        loads = self._loads(candidate, served)
        if self._opened is None or self._opened[0] != loads:
            self.close()  # before the next one needs the memory
            if served is not None and self.servers is not None:
                self._opened = loads, self.servers.open(served)
            else:
                opened = KINDS[candidate.kind].open(candidate, len(self.tokenizer), self.attn_implementation)
                self._opened = loads, opened
        engine = self._opened[1]
        if served is not None and isinstance(engine, VLLMEngine):  # these are the requests' and not the server's
            return replace(engine, min_p=served.min_p, plausibility=served.plausibility)
        return engine

    def _description(self, candidate: Candidate, questions: Sequence[Question], sampling: Sampling) -> dict[str, Any]:
        """Everything that the candidate's completions depend on."""
        chosen = {} if self.attn_implementation is None else {"attn_implementation": self.attn_implementation}
        about = asdict(candidate)
        if candidate.rank is None:  # so that what was finished before there were ranks is still found
            del about["rank"]
        return {
            **chosen,
            "candidate": {
                **about,
                "checkpoints": [self.fingerprints[path] for path in candidate.checkpoints],
            },
            **self.problems,
            "prompts": fingerprint([question.prompt_ids for question in questions]),
            "sampling": sampling.model_dump(),
            "stops": [read_stops(path) for path in candidate.checkpoints],
        }

    def _frame(self, candidate: Candidate, drawn_by: str, files: Sequence[Sequence[Path]]) -> pd.DataFrame:
        """The completions in the files of each process, with the seconds of the one that took longest."""
        rows = [
            {
                "candidate": candidate.name,
                "kind": candidate.kind,
                "alpha": candidate.alpha,
                "plausibility": candidate.plausibility,
                "budget": candidate.budget,
                "engine": drawn_by,
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
