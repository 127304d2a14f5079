"""The alpha sweep: every candidate answers the same problems with the same random numbers."""

import math
import time
from collections.abc import Mapping, Sequence
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
from realign_pipes.realignment.inra import InRaForCausalLM, TokenBudget
from realign_pipes.resume import atomic_path, fingerprint, open_work
from realign_pipes.tasks.grading import Attempt, grade


@dataclass(frozen=True)
class Candidate:
    """One row of the sweep: a model, or for DeRa two, and an alpha."""

    name: str
    kind: str
    """reference, aligned, dera, trra, trra_iter or inra; for budgets truncation or token_budget."""
    alpha: float
    """NaN for the reference and the aligned model, which are no mixtures, and where alpha follows a budget."""
    checkpoints: tuple[Path, ...]
    """One checkpoint; DeRa has the reference's and the aligned model's."""
    budget: TokenBudget | None = None
    """The schedule of a token_budget."""


def load_candidate(candidate: Candidate, vocab_size: int, device: torch.device) -> PreTrainedModel:
    """The candidate as one model with `generate`."""
    if candidate.kind in ("inra", "token_budget"):
        return InRaForCausalLM.from_pretrained(candidate.checkpoints[0]).to(device)
    models = [load_model(path, device=device) for path in candidate.checkpoints]
    if candidate.kind != "dera":
        return models[0]
    reference, aligned = models
    return DeRaForCausalLM(reference, aligned, candidate.alpha, vocab_size)


class Evaluator:
    """Measures candidates on one evaluation set; what an interrupted run finished is read from the folder `work`."""

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
        self.problems, self.tasks, self.fingerprints = problems, tasks, fingerprints
        self.tokenizer, self.device, self.work = tokenizer, device, work
        self.problems_fingerprint = fingerprint(
            [list(problems[column]) for column in ("id", "prompt_ids", "answer", "metadata")]
        )

    def evaluate(self, candidates: Sequence[Candidate], sampling: Sampling) -> dict[str, pd.DataFrame]:
        """Graded completions by candidate. Several candidates are one InRa model's alphas: they are decoded together.

        Columns: candidate, kind, alpha, task, problem_id, sample, completion, completion_tokens, finished, correct, and
        seconds (the time a candidate took without loading; candidates decoded together share it equally).
        """
        finished = {candidate: self._finished(candidate, sampling) for candidate in candidates}
        if todo := [candidate for candidate, file in finished.items() if not file.exists()]:
            frame = self._generate(todo, sampling)
            for candidate in todo:
                with atomic_path(finished[candidate]) as temporary:
                    frame[frame["candidate"] == candidate.name].to_parquet(temporary, index=False)
        return {candidate.name: pd.read_parquet(file) for candidate, file in finished.items()}

    def _finished(self, candidate: Candidate, sampling: Sampling) -> Path:
        """Where the candidate's completions lie, or will."""
        description: dict[str, Any] = {
            "candidate": {
                **asdict(candidate),
                "checkpoints": [self.fingerprints[path] for path in candidate.checkpoints],
            },
            "problems": self.problems_fingerprint,
            "tasks": {name: task.model_dump() for name, task in self.tasks.items()},
            "sampling": sampling.model_dump(),
            "stops": [GenerationConfig.from_pretrained(path).eos_token_id for path in candidate.checkpoints],
        }
        return open_work(self.work / candidate.name, description) / "generations.parquet"

    def _generate(self, candidates: Sequence[Candidate], sampling: Sampling) -> pd.DataFrame:
        """Completions of all candidates, which are one model: prompt i is problem i // n for candidate i % n."""
        count = len(candidates)
        model = load_candidate(candidates[0], len(self.tokenizer), self.device)
        prompts = [prompt for prompt in self.problems["prompt_ids"] for _ in candidates]
        keys = [key for key in self.problems["id"] for _ in candidates]

        def alphas(prompt_indices: list[int]) -> dict[str, Any]:
            if candidates[0].kind == "token_budget":
                return {"alpha": candidates[0].budget}
            if candidates[0].kind == "inra":
                return {"alpha": [candidates[index % count].alpha for index in prompt_indices]}
            return {}

        rows = []
        start = time.perf_counter()
        description = f"evaluating {', '.join(candidate.name for candidate in candidates)}"
        with progress_bar(description, len(prompts) * sampling.samples) as advance:
            for batch in sample_completions(
                model, prompts, keys, sampling, pad_token_id=self.tokenizer.pad_token_id, arguments=alphas
            ):
                attempts = []
                for completion in batch:
                    problem = self.problems[completion.prompt_index // count]
                    tokens = completion.token_ids
                    text = self.tokenizer.decode(tokens[:-1] if completion.finished else tokens)
                    task = self.tasks[problem["task"]]
                    attempts.append(
                        Attempt(problem["id"], task, problem["prompt"], text, problem["answer"], problem["metadata"])
                    )
                for completion, attempt, correct in zip(batch, attempts, grade(attempts), strict=True):
                    candidate = candidates[completion.prompt_index % count]
                    rows.append(
                        {
                            "candidate": candidate.name,
                            "kind": candidate.kind,
                            "alpha": candidate.alpha,
                            "task": self.problems[completion.prompt_index // count]["task"],
                            "problem_id": attempt.problem_id,
                            "sample": completion.sample,
                            "completion": attempt.completion,
                            "completion_tokens": len(completion.token_ids),
                            "finished": completion.finished,
                            "correct": correct,
                        }
                    )
                advance(len(batch))
        frame = pd.DataFrame(rows).sort_values(["task", "problem_id", "sample"], ignore_index=True)
        return frame.assign(seconds=(time.perf_counter() - start) / count)


def evaluate_budgets(
    evaluator: Evaluator, reference: Path, inra: Path, budgets: Sequence[int], ramp: float, sampling: Sampling
) -> dict[str, pd.DataFrame]:
    """At each token budget, the reference cut off there and InRa whose alpha follows TokenBudget(budget, ramp).

    Frames by candidate (`truncation-48`, `token-budget-48`) as `evaluate` gives them, with the column `budget`.
    """
    frames = {}
    for budget in budgets:
        within = sampling.model_copy(update={"max_new_tokens": budget})
        for candidate in (
            Candidate(f"truncation-{budget}", "truncation", math.nan, (reference,)),
            Candidate(f"token-budget-{budget}", "token_budget", math.nan, (inra,), TokenBudget(budget, ramp)),
        ):
            frames[candidate.name] = evaluator.evaluate([candidate], within)[candidate.name].assign(budget=budget)
    return frames
