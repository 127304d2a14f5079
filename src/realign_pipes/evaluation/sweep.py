"""The alpha sweep: every candidate answers the same problems with the same random numbers."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from realign_pipes.evaluation.sampling import sample_completions
from realign_pipes.parameters import AlphaSweep, Problems, Sampling, Task, TrRa
from realign_pipes.progress import progress_bar
from realign_pipes.realignment.checkpoints import check_pair, default_device, fingerprint_model, load_model
from realign_pipes.realignment.dera import DeRaForCausalLM
from realign_pipes.realignment.inra import InRaForCausalLM, TokenBudget
from realign_pipes.realignment.model_card import read_metadata
from realign_pipes.resume import atomic_path, fingerprint, open_work
from realign_pipes.tasks.grading import Attempt, grade

ORDER = ["task", "problem_id", "sample"]
TOGETHER = "together.json"
"""Beside a candidate's completions: the names of those that were decoded with it."""


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


def measure(
    parameters: AlphaSweep,
    tasks: dict[str, Problems],
    trra: TrRa,
    reference: Path,
    aligned: Path,
    trra_checkpoints: dict[str, Path],
    inra_checkpoint: Path,
    problems: Dataset,
    work: Path,
) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """Graded completions by candidate, and those inside token budgets.

    Candidates that an interrupted run finished in `work` are not measured again. Of TrRa's checkpoints those are
    measured that `trra` names; FileNotFoundError if one is not there, ValueError if one has another reference.
    """
    trained = _trained(trra, trra_checkpoints)
    tokenizer = check_pair(reference, aligned)
    candidates = [
        Candidate("reference", "reference", math.nan, (reference,)),
        Candidate("aligned", "aligned", math.nan, (aligned,)),
        *(Candidate(f"dera-{alpha:g}", "dera", alpha, (reference, aligned)) for alpha in parameters.dera_alphas),
        *trained,
    ]
    fingerprints = {path: fingerprint_model(path) for path in (reference, aligned)}
    stages = {**{candidate.checkpoints[0]: "trra" for candidate in trained}, inra_checkpoint: "inra"}
    for path, stage in stages.items():
        if read_metadata(path)["reference"]["fingerprint"] != fingerprints[reference]:
            raise ValueError(f"{path} was trained from another reference than {reference}. "
                             f"Run the stage {stage} again: kedro run --pipeline {stage}")  # fmt: skip
        fingerprints[path] = fingerprint_model(path)
    inra = [Candidate(f"inra-{alpha:g}", "inra", alpha, (inra_checkpoint,)) for alpha in parameters.inra_alphas]
    evaluator = Evaluator(
        problems, tasks, fingerprints=fingerprints, tokenizer=tokenizer, device=default_device(), work=work
    )
    generations = {}
    for together in [*([candidate] for candidate in candidates), inra]:  # all alphas of InRa are one model
        generations.update(evaluator.evaluate(together, parameters.sampling))
    budgets = evaluate_budgets(
        evaluator,
        reference,
        inra_checkpoint,
        parameters.budgets.tokens,
        parameters.budgets.ramp,
        parameters.sampling,
    )
    return generations, budgets


def _trained(trra: TrRa, checkpoints: Mapping[str, Path]) -> list[Candidate]:
    """A candidate for each checkpoint that `trra` names."""
    named = {alpha: trra.checkpoint_names(alpha) for alpha in trra.alphas}
    wanted = [name for names in named.values() for name in names]
    if missing := [name for name in wanted if name not in checkpoints]:
        raise FileNotFoundError(f"the parameters of trra name checkpoints that are not there: {', '.join(missing)}. "
                                "Train them: kedro run --pipeline trra, or dvc repro")  # fmt: skip
    return [
        Candidate(Path(name).name, "trra_iter" if iteration else "trra", float(alpha), (checkpoints[name],))
        for alpha, names in named.items()
        for iteration, name in enumerate(names)
    ]


class Evaluator:
    """Measures candidates on one evaluation set; what an interrupted run finished is read from the folder `work`.

    Of n processes, number r decodes the problems r, r + n, …; the main process puts the parts together.
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
        self.problems, self.tasks, self.fingerprints = problems, tasks, fingerprints
        self.tokenizer, self.device, self.work = tokenizer, device, work
        self.problems_fingerprint = fingerprint(
            [list(problems[column]) for column in ("id", "prompt_ids", "answer", "metadata")]
        )

    def evaluate(self, candidates: Sequence[Candidate], sampling: Sampling) -> dict[str, pd.DataFrame]:
        """Graded completions by candidate. Several candidates are one InRa model's alphas: they are decoded together.

        Columns: candidate, kind, alpha, task, problem_id, sample, completion, completion_tokens, finished, correct, and
        seconds (the time a candidate took without loading, in the slowest process; candidates decoded together share it
        equally).
        """
        state = PartialState()
        with state.main_process_first():
            finished = {candidate: self._finished(candidate, sampling) for candidate in candidates}
        todo = _unfinished(finished)
        state.wait_for_everyone()  # before one of them writes what another looks for
        if todo:
            if state.is_main_process:
                for candidate in todo:
                    with atomic_path(finished[candidate].with_name(TOGETHER)) as temporary:
                        temporary.write_text(json.dumps([one.name for one in todo]))
            # Processes without a problem of their own have no part.
            names = [f"part-{rank}.parquet" for rank in range(min(state.num_processes, len(self.problems)))]
            if state.process_index < len(names):
                frame = self._generate(todo, sampling, range(state.process_index, len(self.problems), len(names)))
                for candidate in todo:
                    with atomic_path(finished[candidate].with_name(names[state.process_index])) as temporary:
                        frame[frame["candidate"] == candidate.name].to_parquet(temporary, index=False)
            state.wait_for_everyone()
            if state.is_main_process:
                for candidate in todo:
                    _join([finished[candidate].with_name(name) for name in names], finished[candidate])
            state.wait_for_everyone()
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

    def _generate(self, candidates: Sequence[Candidate], sampling: Sampling, numbers: Sequence[int]) -> pd.DataFrame:
        """Completions for the problems with these numbers, of all candidates, which are one model.

        Prompt i is the (i // n)-th of these problems for candidate i % n.
        """
        count = len(candidates)
        problems = self.problems.select(numbers)
        model = load_candidate(candidates[0], len(self.tokenizer), self.device)
        prompts = [prompt for prompt in problems["prompt_ids"] for _ in candidates]
        keys = [key for key in problems["id"] for _ in candidates]

        def alphas(prompt_indices: list[int], step: int) -> dict[str, Any]:
            if (budget := candidates[0].budget) is not None:
                return {"alpha": lambda further, row: budget(step + further, row)}
            if candidates[0].kind == "inra":
                return {"alpha": [candidates[index % count].alpha for index in prompt_indices]}
            return {}

        rows = []
        start = time.perf_counter()
        description = f"evaluating {', '.join(candidate.name for candidate in candidates)}"
        main = PartialState().is_main_process
        total = len(prompts) * sampling.samples
        with progress_bar(description, total) if main else nullcontext(lambda steps: None) as advance:
            for batch in sample_completions(
                model, prompts, keys, sampling, pad_token_id=self.tokenizer.pad_token_id, arguments=alphas
            ):
                attempts = []
                for completion in batch:
                    problem = problems[completion.prompt_index // count]
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
                            "task": problems[completion.prompt_index // count]["task"],
                            "problem_id": attempt.problem_id,
                            "sample": completion.sample,
                            "completion": attempt.completion,
                            "completion_tokens": len(completion.token_ids),
                            "finished": completion.finished,
                            "correct": correct,
                        }
                    )
                advance(len(batch))
        frame = pd.DataFrame(rows).sort_values(ORDER, ignore_index=True)
        return frame.assign(seconds=(time.perf_counter() - start) / count)


def _unfinished(finished: Mapping[Candidate, Path]) -> list[Candidate]:
    """Candidates without their file, and those that an interrupted run decoded together with them.

    Other rows in a batch may change the last bits of a logit: a killed run should go on to what it would have written.
    """
    missing = [file.with_name(TOGETHER) for file in finished.values() if not file.exists()]
    names = {name for file in missing if file.exists() for name in json.loads(file.read_text())}
    return [one for one, file in finished.items() if one.name in names or not file.exists()]


def _join(parts: Sequence[Path], whole: Path) -> None:
    """One file of what each process measured, in the order of one process, and as slow as the slowest."""
    frame = pd.concat([pd.read_parquet(part) for part in parts]).sort_values(ORDER, ignore_index=True)
    with atomic_path(whole) as temporary:
        frame.assign(seconds=frame["seconds"].max()).to_parquet(temporary, index=False)
    for part in whole.parent.glob("part-*.parquet"):  # those of another number of processes, too
        part.unlink()


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
